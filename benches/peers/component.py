"""component.rs with diffusers: one UNet step, FLUX step, VAE decode, T5 or CLIP run on the same weights and inputs, in
f32, two threads. The environment is that of component.rs; with AQUATINT_COMPILE=1 through torch.compile.

    .ref/bin/python benches/peers/component.py unet|vae|flux|t5|clip FOLDER SIDE BATCH RUNS
"""
import json
import os
import pathlib
import sys
import time

import torch
from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel, UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

kind, folder, side, batch, runs = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
torch.set_num_threads(2)
DEVICE = os.environ.get("AQUATINT_DEVICE", "cpu")
ASKED = os.environ.get("AQUATINT_DTYPE", "f16" if DEVICE == "cuda" else "f32")
TYPE = dict(f32=torch.float32, f16=torch.float16, bf16=torch.bfloat16)[ASKED]


def wave(*shape):
    n = torch.Size(shape).numel()
    return torch.sin(0.1 * torch.arange(n, dtype=torch.float32)).reshape(shape).to(DEVICE, TYPE)


def text(config):
    return T5EncoderModel(T5Config(**config)) if kind == "t5" else CLIPTextModel(CLIPTextConfig(**config))


def load():
    kinds = dict(unet=UNet2DConditionModel, vae=AutoencoderKL, flux=FluxTransformer2DModel)
    if folder.startswith("dummy:"):
        import dummy

        model, part = folder.removeprefix("dummy:").split("/")
        config = {k: v for k, v in dummy.config(model, part).items() if k != "_class_name"}
        make = kinds[kind].from_config if kind in kinds else text
        return dummy.build(lambda: make(config), TYPE, DEVICE)
    if kind in kinds:
        return kinds[kind].from_pretrained(folder).eval()
    # transformers looks for other file names than diffusers: the file is loaded by hand.
    path = pathlib.Path(folder)
    model = text(json.loads((path / "config.json").read_text()))
    file = next(f for f in ("diffusion_pytorch_model.safetensors", "model.safetensors") if (path / f).exists())
    model.load_state_dict(load_file(path / file), strict=False)
    return model.eval()


@torch.no_grad()
def main():
    model = load()
    config = model.config
    model.to(DEVICE, TYPE)
    if DEVICE == "cuda":
        model.to(memory_format=torch.channels_last)
    if os.environ.get("AQUATINT_COMPILE"):
        entry, mode = "decode" if kind == "vae" else "forward", os.environ.get("AQUATINT_COMPILE_MODE", "max-autotune")
        setattr(model, entry, torch.compile(getattr(model, entry), mode=mode))
    if kind == "unet":
        added = None
        latents = wave(batch, config.in_channels, side, side)
        prompt = wave(batch, 77, config.cross_attention_dim)
        if config.addition_embed_type:
            pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
            ids = torch.tensor([[256.0, 256.0, 0.0, 0.0, 256.0, 256.0]] * batch).to(DEVICE, TYPE)
            added = dict(text_embeds=wave(batch, pooled), time_ids=ids)
        run = lambda: model(latents, torch.tensor([500.0] * batch).to(DEVICE), prompt, added_cond_kwargs=added).sample
    elif kind == "flux":
        x = wave(batch, config.in_channels // 4, side, side)
        ids = FluxPipeline._prepare_latent_image_ids(batch, side // 2, side // 2, DEVICE, TYPE)
        args = dict(
            encoder_hidden_states=wave(1, 256, config.joint_attention_dim).expand(batch, -1, -1),
            pooled_projections=wave(1, config.pooled_projection_dim).expand(batch, -1),
            txt_ids=torch.zeros(256, 3).to(DEVICE, TYPE), img_ids=ids, guidance=torch.full((batch,), 3.5).to(DEVICE),
            timestep=torch.full((batch,), 0.5).to(DEVICE, TYPE),
        )  # fmt: skip
        run = lambda: model(FluxPipeline._pack_latents(x, *x.shape), **args).sample
    elif kind in ("t5", "clip"):
        ids = (torch.arange(side) * 600 % config.vocab_size).repeat(batch, 1).to(DEVICE)
        run = lambda: model(ids)[0]
    else:
        latents = wave(batch, config.latent_channels, side, side)
        run = lambda: model.decode(latents).sample
    milliseconds = []
    for _ in range(runs):
        start = time.perf_counter()
        y = run()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        milliseconds.append((time.perf_counter() - start) * 1e3)
    if "AQUATINT_OUTPUT" in os.environ:
        y = FluxPipeline._unpack_latents(y, side, side, vae_scale_factor=1) if kind == "flux" else y
        y.float().contiguous().cpu().numpy().tofile(os.environ["AQUATINT_OUTPUT"])
    print(json.dumps(dict(milliseconds=milliseconds, magnitude=y.float().abs().mean().item())))


main()
