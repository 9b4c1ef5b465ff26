"""component.rs with diffusers: one UNet step, VAE decode or FLUX step on the same weights and inputs, in f32, two threads.

    .ref/bin/python benches/peers/component.py unet|vae|flux FOLDER SIDE BATCH RUNS
"""
import json
import sys
import time

import torch
from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel, UNet2DConditionModel

kind, folder, side, batch, runs = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
torch.set_num_threads(2)


def wave(*shape):
    n = torch.Size(shape).numel()
    return torch.sin(0.1 * torch.arange(n, dtype=torch.float32)).reshape(shape)


@torch.no_grad()
def main():
    model = dict(unet=UNet2DConditionModel, vae=AutoencoderKL, flux=FluxTransformer2DModel)[kind].from_pretrained(folder).eval()
    config = model.config
    if kind == "unet":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        latents = wave(batch, config.in_channels, side, side)
        prompt = wave(batch, 77, config.cross_attention_dim)
        ids = torch.tensor([[256.0, 256.0, 0.0, 0.0, 256.0, 256.0]] * batch)
        added = dict(text_embeds=wave(batch, pooled), time_ids=ids)
        run = lambda: model(latents, torch.tensor([500.0] * batch), prompt, added_cond_kwargs=added).sample
    elif kind == "flux":
        x = wave(batch, config.in_channels // 4, side, side)
        ids = FluxPipeline._prepare_latent_image_ids(batch, side // 2, side // 2, "cpu", torch.float32)
        args = dict(
            encoder_hidden_states=wave(1, 256, config.joint_attention_dim).expand(batch, -1, -1),
            pooled_projections=wave(1, config.pooled_projection_dim).expand(batch, -1),
            txt_ids=torch.zeros(256, 3), img_ids=ids, guidance=torch.full((batch,), 3.5), timestep=torch.full((batch,), 0.5),
        )  # fmt: skip
        run = lambda: model(FluxPipeline._pack_latents(x, *x.shape), **args).sample
    else:
        latents = wave(batch, config.latent_channels, side, side)
        run = lambda: model.decode(latents).sample
    milliseconds = []
    for _ in range(runs):
        start = time.perf_counter()
        y = run()
        milliseconds.append((time.perf_counter() - start) * 1e3)
    print(json.dumps(dict(milliseconds=milliseconds, magnitude=y.abs().mean().item())))


main()
