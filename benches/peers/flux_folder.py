"""Writes a model folder of FLUX at full width and little depth, with random bf16 weights, for the memory check:

    .ref/bin/python benches/peers/flux_folder.py OUT DOUBLE SINGLE T5_LAYERS dev|schnell
"""
import json
import pathlib
import shutil
import sys

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

FIXTURES = pathlib.Path(__file__).parents[2] / "models/tests/fixtures"
CLIP = dict(
    vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, max_position_embeddings=77,
    hidden_act="quick_gelu", projection_dim=768, bos_token_id=0, eos_token_id=2, pad_token_id=1,
)  # fmt: skip
VAE = dict(
    in_channels=3, out_channels=3, latent_channels=16, block_out_channels=[128, 256, 512, 512], layers_per_block=2, sample_size=1024,
    scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False,
    down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
)  # fmt: skip


def main(out, double, single, t5_layers, kind):
    out = pathlib.Path(out)
    t5 = dict(
        vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=int(t5_layers), num_heads=64, feed_forward_proj="gated-gelu",
        relative_attention_num_buckets=32, relative_attention_max_distance=128, layer_norm_epsilon=1e-6,
    )  # fmt: skip
    transformer = dict(num_layers=int(double), num_single_layers=int(single), guidance_embeds=kind == "dev")
    scheduler = dict(_class_name="FlowMatchEulerDiscreteScheduler", num_train_timesteps=1000, shift=3.0, use_dynamic_shifting=kind == "dev")
    models = {
        "transformer": (FluxTransformer2DModel, transformer, transformer, "diffusion_pytorch_model"),
        "vae": (AutoencoderKL, VAE, VAE, "diffusion_pytorch_model"),
        "text_encoder": (CLIPTextModel, CLIP, CLIPTextConfig(**CLIP), "model"),
        "text_encoder_2": (T5EncoderModel, t5, T5Config(**t5), "model"),
    }
    generator = torch.Generator().manual_seed(0)
    for name, (kind, config, argument, file) in models.items():
        (out / name).mkdir(parents=True, exist_ok=True)
        (out / name / "config.json").write_text(json.dumps(config))
        with torch.device("meta"):
            model = kind(**argument) if isinstance(argument, dict) else kind(argument)
        tensors = {}
        for key, value in model.state_dict().items():
            if not value.is_floating_point() or key == "encoder.embed_tokens.weight":
                continue
            fan_in = value[0].numel() if value.dim() > 1 else 1
            tensors[key] = (torch.empty(value.shape).uniform_(-1, 1, generator=generator) * fan_in**-0.5).bfloat16()
        save_file(tensors, out / name / f"{file}.safetensors")
        print(f"{name}: {sum(t.numel() for t in tensors.values()) / 1e6:.0f} M parameters", flush=True)
    (out / "model_index.json").write_text(json.dumps(dict(_class_name="FluxPipeline")))
    (out / "scheduler").mkdir(exist_ok=True)
    (out / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler))
    shutil.copytree(FIXTURES / "tokenizer", out / "tokenizer", dirs_exist_ok=True)
    shutil.copytree(FIXTURES / "t5_tokenizer", out / "tokenizer_2", dirs_exist_ok=True)


main(*sys.argv[1:])
