"""Records diffusers' UNet2DConditionModel on tiny configs:  .ref/bin/python models/tests/reference/unet.py"""
import json
import pathlib

import torch
from diffusers import LatentConsistencyModelPipeline, UNet2DConditionModel
from safetensors.torch import save_file

import synthetic

FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures"
CROSS_DOWN, CROSS_UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
TINY = dict(sample_size=8, layers_per_block=1, block_out_channels=[32, 64], norm_num_groups=8, cross_attention_dim=32)
SD1 = TINY | dict(down_block_types=[CROSS_DOWN, "DownBlock2D"], up_block_types=["UpBlock2D", CROSS_UP], attention_head_dim=8)
SDXL = TINY | dict(
    down_block_types=["DownBlock2D", CROSS_DOWN],
    up_block_types=[CROSS_UP, "UpBlock2D"],
    transformer_layers_per_block=[1, 2],
    attention_head_dim=[2, 4],
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=8,
    projection_class_embeddings_input_dim=6 * 8 + 24,
)
CONFIGS = {
    "sd15": SD1 | dict(layers_per_block=2),
    "sd21": SD1 | dict(use_linear_projection=True, attention_head_dim=[4, 8], upcast_attention=True),
    "sdxl": SDXL,
    "sdxl_inpaint": SDXL | dict(in_channels=9),
    "refiner": SDXL | dict(projection_class_embeddings_input_dim=5 * 8 + 24),
    "ssd1b": SDXL
    | dict(
        block_out_channels=[16, 32, 32],
        down_block_types=["DownBlock2D", CROSS_DOWN, CROSS_DOWN],
        up_block_types=[CROSS_UP, CROSS_UP, "UpBlock2D"],
        layers_per_block=2,
        attention_head_dim=[1, 2, 4],
        transformer_layers_per_block=[1, [1, 2], [1, 1]],
        reverse_transformer_layers_per_block=[[1, 1, 2], [2, 1, 1], 1],
    ),
    "no_mid_block": SD1 | dict(mid_block_type=None),
    "plain_mid_block": SD1 | dict(mid_block_type="UNetMidBlock2D", downsample_padding=0),
    "lcm_distilled": SD1 | dict(time_cond_proj_dim=16),
}


def inputs(name, config, seed):
    # Odd sizes: the way up must meet the sizes of the way down.
    size = (5, 7) if name in ("sdxl", "ssd1b") else (8, 6)
    r = torch.Generator().manual_seed(seed)
    x = torch.randn(2, config.get("in_channels", 4), *size, generator=r)
    t = torch.tensor([999.0, 250.0]) if name != "sd15" else torch.tensor([1.0, 501.0])
    given = dict(x=x, t=t, prompt=torch.randn(2, 11, config["cross_attention_dim"], generator=r))
    if "addition_embed_type" in config:
        ids = (config["projection_class_embeddings_input_dim"] - 24) // 8
        given["text_embeds"] = torch.randn(2, 24, generator=r)
        given["time_ids"] = torch.randint(0, 1024, (2, ids), generator=r).float()
    return given


def run(config, seed, given, dtype):
    unet = synthetic.fill(UNet2DConditionModel(**config), seed).to(dtype)
    g = {k: v.to(dtype) for k, v in given.items()}
    added = {k: g[k] for k in ("text_embeds", "time_ids") if k in g}
    cond = None
    if "time_cond_proj_dim" in config:
        cond = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, torch.tensor([6.5, 6.5]), embedding_dim=16).to(dtype)
    return unet(g["x"], g["t"], g["prompt"], timestep_cond=cond, added_cond_kwargs=added).sample


@torch.no_grad()
def main():
    tensors, texts = {}, {}
    for name, config in CONFIGS.items():
        # Random networks can amplify rounding: one whose f32 output is itself uncertain against f64 cannot be held to a
        # tolerance of 1e-4, so the best of a few is taken.
        best = None
        for seed in range(8):
            given = inputs(name, config, seed)
            y = run(config, seed, given, torch.float32)
            uncertainty = (run(config, seed, given, torch.float64) - y).abs().max().item()
            if best is None or uncertainty < best[0]:
                best = uncertainty, seed, given, y
        uncertainty, seed, given, y = best
        print(f"{name}: seed {seed}, {tuple(y.shape)}, std {y.std().item():.3f}, f32 against f64 {uncertainty:.1e}")
        tensors |= {f"{name}.{k}": v for k, v in (given | dict(y=y)).items()}
        texts[name] = json.dumps(config | {"seed": seed})
    save_file({k: v.contiguous() for k, v in tensors.items()}, FIXTURES / "unet.safetensors", metadata=texts)


if __name__ == "__main__":
    main()
