"""Records diffusers' FluxTransformer2DModel on tiny configs:  .ref/bin/python models/tests/reference/flux_transformer.py

Latents are packed, given positions and unpacked by the pipelines' own functions.
"""
import json
import pathlib
from unittest import mock

import torch
from diffusers import FluxKontextPipeline, FluxPipeline, FluxTransformer2DModel
from safetensors.torch import save_file

import synthetic

FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures"
TINY = dict(
    patch_size=1, in_channels=16, out_channels=None, num_layers=2, num_single_layers=2, attention_head_dim=20,
    num_attention_heads=2, joint_attention_dim=24, pooled_projection_dim=12, guidance_embeds=True, axes_dims_rope=[4, 10, 6],
)  # fmt: skip
CONFIGS = {
    "dev": TINY,
    "schnell": TINY | dict(guidance_embeds=False, num_layers=1, num_single_layers=3),
    "fill": TINY | dict(in_channels=384, out_channels=64, num_single_layers=1),
    "kontext": TINY,
}
SIZES = {"dev": (6, 10), "schnell": (8, 4), "fill": (4, 6), "kontext": (4, 8)}


def inputs(name, config, seed):
    r = torch.Generator().manual_seed(seed)
    # Two samples at different steps, with their own prompts and guidances; schnell alone.
    batch = 1 if name == "schnell" else 2
    given = dict(
        x=torch.randn(batch, config["in_channels"] // 4, *SIZES[name], generator=r),
        t=torch.tensor([1000.0, 752.3125][:batch]),
        prompt=torch.randn(batch, 7, config["joint_attention_dim"], generator=r),
        pooled=torch.randn(batch, config["pooled_projection_dim"], generator=r),
    )
    if config["guidance_embeds"]:
        given["guidance"] = torch.tensor([30.0, 15.0] if name == "fill" else [3.5, 2.5])
    if name == "kontext":
        given["reference"] = torch.randn(batch, config["in_channels"] // 4, 6, 4, generator=r)
    return given


def pack(latents):
    return FluxPipeline._pack_latents(latents, *latents.shape)


def ids(latents, dtype):
    return FluxPipeline._prepare_latent_image_ids(None, latents.shape[2] // 2, latents.shape[3] // 2, "cpu", dtype)


def rounded_exp(x):
    """exp as f64 rounds it. torch's f32 has another last bit here and there, which moves the embedding of a guidance of 30
    (sines and cosines of up to 30,000) by 1e-3 and Fill's output by 1e-4."""
    return x.double().exp().to(x.dtype)


def run(config, seed, given, dtype):
    transformer = synthetic.fill(FluxTransformer2DModel(**config), seed).to(dtype)
    g = {k: v.to(dtype) for k, v in given.items()}
    x = g["x"]
    hidden, img_ids = pack(x), ids(x, dtype)
    tokens = hidden.shape[1]
    if "reference" in g:
        reference_ids = ids(g["reference"], dtype)
        reference_ids[..., 0] = 1
        hidden = torch.cat([hidden, pack(g["reference"])], dim=1)
        img_ids = torch.cat([img_ids, reference_ids], dim=0)
    y = transformer(
        hidden_states=hidden,
        timestep=g["t"] / 1000,
        guidance=g.get("guidance"),
        pooled_projections=g["pooled"],
        encoder_hidden_states=g["prompt"],
        txt_ids=torch.zeros(g["prompt"].shape[1], 3, dtype=dtype),
        img_ids=img_ids,
    ).sample[:, :tokens]
    return FluxKontextPipeline._unpack_latents(y, *x.shape[2:], vae_scale_factor=1)


@torch.no_grad()
def main():
    tensors, texts = {}, {}
    for name, config in CONFIGS.items():
        # As in unet.py: the best of a few seeds, by how certain f32 is.
        best = None
        for seed in range(16):
            given = inputs(name, config, seed)
            exp = rounded_exp if name == "fill" else torch.exp
            with mock.patch("torch.exp", exp):
                y = run(config, seed, given, torch.float32)
            with mock.patch("torch.exp", rounded_exp):
                uncertainty = (run(config, seed, given, torch.float64) - y).abs().max().item()
            if best is None or uncertainty < best[0]:
                best = uncertainty, seed, given, y
        uncertainty, seed, given, y = best
        print(f"{name}: seed {seed}, {tuple(y.shape)}, std {y.std().item():.3f}, f32 against f64 {uncertainty:.1e}")
        tensors |= {f"{name}.{k}": v for k, v in (given | dict(y=y)).items()}
        texts[name] = json.dumps(config | {"seed": seed})
    save_file({k: v.contiguous() for k, v in tensors.items()}, FIXTURES / "flux_transformer.safetensors", metadata=texts)


if __name__ == "__main__":
    main()
