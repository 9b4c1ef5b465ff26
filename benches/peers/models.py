"""Writes the models of the side-by-side timings and of the memory check, with random weights:

    .ref/bin/python benches/peers/models.py OUT [unet-35m] [vae] [flux-2] [sdxl-unet] [t5-layer]

    unet-35m    an SDXL-architecture UNet of about 35 M parameters, f32
    vae         SDXL's published AutoencoderKL config, f32
    flux-2      one double and one single block of FLUX.1-dev at full width, f32 (2 GB)
    sdxl-unet   SDXL's published UNet config, 2.6 B parameters, f16 (5.1 GB)
    t5-layer    one of the 24 layers of FLUX's T5, f32 (0.8 GB); only when named
"""
import json
import pathlib
import sys

import numpy as np
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel, UNet2DConditionModel
from safetensors.numpy import save_file
from transformers import T5Config, T5EncoderModel

CROSS_DOWN, CROSS_UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
SDXL = dict(
    sample_size=128, in_channels=4, out_channels=4, layers_per_block=2, block_out_channels=[320, 640, 1280],
    down_block_types=["DownBlock2D", CROSS_DOWN, CROSS_DOWN], up_block_types=[CROSS_UP, CROSS_UP, "UpBlock2D"],
    transformer_layers_per_block=[1, 2, 10], attention_head_dim=[5, 10, 20], use_linear_projection=True, cross_attention_dim=2048,
    addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
)  # fmt: skip
SMALL = SDXL | dict(
    sample_size=32, block_out_channels=[64, 160, 256], transformer_layers_per_block=[1, 1, 2], attention_head_dim=[2, 5, 8],
    cross_attention_dim=512, addition_time_embed_dim=64, projection_class_embeddings_input_dim=6 * 64 + 256,
)  # fmt: skip
VAE = dict(
    in_channels=3, out_channels=3, latent_channels=4, block_out_channels=[128, 256, 512, 512], layers_per_block=2, sample_size=1024,
    scaling_factor=0.13025, down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
)  # fmt: skip
FLUX_2 = dict(num_layers=1, num_single_layers=1, guidance_embeds=True)
T5 = dict(vocab_size=1000, d_model=4096, d_kv=64, d_ff=10240, num_layers=1, num_heads=64, feed_forward_proj="gated-gelu", is_encoder_decoder=False, use_cache=False)
MODELS = {
    "unet-35m": (UNet2DConditionModel, SMALL, np.float32), "vae": (AutoencoderKL, VAE, np.float32),
    "flux-2": (FluxTransformer2DModel, FLUX_2, np.float32), "sdxl-unet": (UNet2DConditionModel, SDXL, np.float16),
    "t5-layer": (T5EncoderModel, T5, np.float32),
}  # fmt: skip
UNLESS_NAMED = [name for name in MODELS if name != "t5-layer"]


def main(out, names):
    rng = np.random.default_rng(0)
    for name in names or UNLESS_NAMED:
        model, config, dtype = MODELS[name]
        folder = pathlib.Path(out) / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"_class_name": model.__name__} | config))
        with torch.device("meta"):
            module = model(T5Config(**config)) if model is T5EncoderModel else model(**config)
            shapes = {k: tuple(v.shape) for k, v in module.state_dict().items() if k != "encoder.embed_tokens.weight"}
        tensors = {}
        for key, shape in shapes.items():
            fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 1
            t = rng.standard_normal(shape, dtype=np.float32)
            t = 1 + 0.1 * t if key.endswith("weight") and len(shape) == 1 else t * (0.1 if len(shape) == 1 else fan_in**-0.5)
            tensors[key] = t.astype(dtype)
        save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
        print(f"{name}: {sum(t.size for t in tensors.values()) / 1e6:.1f} M parameters", flush=True)


main(sys.argv[1], sys.argv[2:])
