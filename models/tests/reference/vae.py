"""Records diffusers' VAEs, TAESD and Pillow's resizing:  .ref/bin/python models/tests/reference/vae.py

With AQUATINT_TEST_DATA set to the folder that holds taef2/, TAEF2's real weights are recorded too.
"""
import json
import os
import pathlib

import numpy
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.image_processor import VaeImageProcessor
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import synthetic

FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures"
TINY = dict(
    down_block_types=["DownEncoderBlock2D"] * 4,
    up_block_types=["UpDecoderBlock2D"] * 4,
    block_out_channels=[16, 32, 32, 32],
    norm_num_groups=8,
    sample_size=32,
)
# Name: config, batch, height and width of the latents.
CASES = {
    "sd": (TINY, 2, 3, 5),
    "sdxl": (TINY | dict(layers_per_block=2, scaling_factor=0.13025, force_upcast=False), 1, 9, 13),
    "flux": (
        TINY
        | dict(latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        1, 5, 7,
    ),
    "no_attention": (TINY | dict(mid_block_add_attention=False), 1, 5, 4),
    "playground": (
        TINY
        | dict(
            block_out_channels=[16, 24, 32],
            down_block_types=["DownEncoderBlock2D"] * 3,
            up_block_types=["UpDecoderBlock2D"] * 3,
            scaling_factor=0.5,
            latents_mean=[-1.6574, 1.886, -1.383, 2.5155],
            latents_std=[8.4927, 5.9022, 6.5498, 5.2299],
        ),
        1, 9, 5,
    ),
}


def save(name, tensors, texts=None):
    save_file({k: v.contiguous() for k, v in tensors.items()}, FIXTURES / f"{name}.safetensors", metadata=texts)
    size = (FIXTURES / f"{name}.safetensors").stat().st_size
    assert size <= 256 << 10, (name, size)


def uniform(*shape, seed, scale=1.0):
    """Values that f16 holds exactly, which halves the fixture."""
    x = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return (x * scale).half().float()


def lively(name, picture, most=0.8):
    """A flat or saturated picture would hide errors. What is compared is not clamped."""
    std = picture.std().item()
    print(f"{name}: std {std:.2f}, {picture.abs().gt(1).float().mean().item():.0%} beyond -1..1")
    assert 0.2 < std < most, (name, std)


def scaled(vae, z):
    """As StableDiffusionXLImg2ImgPipeline.prepare_latents and FluxImg2ImgPipeline._encode_vae_image do."""
    c = vae.config
    if c.latents_mean is not None:
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (c.latents_mean, c.latents_std))
        return (z - mean) * c.scaling_factor / std
    return (z - (c.shift_factor or 0)) * c.scaling_factor


def autoencoder_kl():
    for seed, (name, (config, batch, height, width)) in enumerate(CASES.items()):
        vae = synthetic.fill(AutoencoderKL(**config), seed)
        d = 2 ** (len(config["block_out_channels"]) - 1)
        image = uniform(batch, 3, height * d, width * d, seed=seed)
        latents = uniform(batch, vae.config.latent_channels, height, width, seed=100 + seed, scale=2.0)
        gaussian, picture = vae.encode(image).latent_dist, vae.decode(latents).sample
        lively(name, picture)
        assert gaussian.mean.std() > 0.2 and gaussian.std.std() > 0.1
        tensors = {
            "image": image.half(),
            "mean": gaussian.mean,
            "std": gaussian.std,
            "scaled": scaled(vae, gaussian.mean),
            "latents": latents.half(),
            "picture": picture,
        }
        texts = {"config": json.dumps(config | {"_class_name": "AutoencoderKL"}), "seed": str(seed)}
        if name == "sd":
            texts |= {"ldm": json.dumps(ldm_keys(vae)), "deprecated": json.dumps(deprecated_keys(vae))}
        save(f"vae_{name}", tensors, texts)


def tiled():
    """Tiles of 32 pixels over 72 x 104 and 48 x 24: with corners, remainders, and one side within a tile."""
    config = TINY | dict(scaling_factor=0.13025)
    vae = synthetic.fill(AutoencoderKL(**config), 7)
    tensors = {}
    for name, (height, width) in {"both": (9, 13), "one": (6, 3)}.items():
        image = uniform(1, 3, 8 * height, 8 * width, seed=height)
        latents = uniform(1, 4, height, width, seed=width, scale=2.0)
        vae.disable_tiling()
        whole = vae.decode(latents).sample
        vae.enable_tiling()
        gaussian, picture = vae.encode(image).latent_dist, vae.decode(latents).sample
        lively(f"tiled {name}, differs by {(picture - whole).abs().max():.2f}", picture)
        part = {"image": image.half(), "latents": latents.half(), "mean": gaussian.mean, "std": gaussian.std, "picture": picture}
        tensors |= {f"{name}.{k}": v for k, v in part.items()}
    save("vae_tiled", tensors, {"config": json.dumps(config), "seed": "7"})


def ldm_keys(vae):
    """[original key, diffusers key, original shape], as diffusers' own conversion maps them."""
    state, ldm = vae.state_dict(), {}
    blocks = len(vae.config.block_out_channels)
    for key, value in state.items():
        old = key
        for i in range(blocks):
            old = old.replace(f"encoder.down_blocks.{i}.", f"encoder.down.{i}.").replace(f"decoder.up_blocks.{i}.", f"decoder.up.{blocks - 1 - i}.")
        for new, name in [
            (".resnets.", ".block."), ("mid_block.block.0", "mid.block_1"), ("mid_block.block.1", "mid.block_2"),
            ("downsamplers.0", "downsample"), ("upsamplers.0", "upsample"), ("conv_shortcut", "nin_shortcut"),
            ("conv_norm_out", "norm_out"), ("mid_block.attentions.0", "mid.attn_1"), ("group_norm", "norm"),
            ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out"),
        ]:  # fmt: skip
            old = old.replace(new, name)
        ldm[old] = value[:, :, None, None] if "attn" in old and value.ndim == 2 else value
    prefixed = {f"first_stage_model.{k}": v for k, v in ldm.items()}
    back = convert_ldm_vae_checkpoint(prefixed, vae.config)
    assert back.keys() == state.keys() and all(torch.equal(back[k], state[k]) for k in state)
    # The conversion is by name alone, so one distinct value a tensor tells which became which.
    marked = {k: torch.full((2, 2), float(i)) for i, k in enumerate(prefixed)}
    new = {int(v.flatten()[0]): k for k, v in convert_ldm_vae_checkpoint(marked, vae.config).items()}
    return [[k, new[i], list(v.shape)] for i, (k, v) in enumerate(prefixed.items())]


def deprecated_keys(vae):
    """The same for the names of diffusers' first attention block."""
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    keys = []
    for key, value in vae.state_dict().items():
        old = key
        for new, name in names.items():
            old = old.replace(f"attentions.0.{new}.", f"attentions.0.{name}.")
        keys.append([old, key, list(value.shape)])
    state = {old: torch.zeros(1) for old, _, _ in keys}
    vae._fix_state_dict_keys_on_load(state)
    assert state.keys() == {key for _, key, _ in keys}
    return keys


def autoencoder_tiny():
    config = dict(
        encoder_block_out_channels=[16, 16, 16, 16],
        decoder_block_out_channels=[16, 16, 16, 16],
        num_encoder_blocks=[1, 2, 1, 3],
        num_decoder_blocks=[3, 2, 1, 1],
    )
    vae = synthetic.fill(AutoencoderTiny(**config), 3)
    image, latents = uniform(1, 3, 40, 56, seed=1), uniform(1, 4, 5, 7, seed=2, scale=6.0)
    encoded, picture = vae.encode(image).latents, vae.decode(latents).sample
    lively("taesd", picture, most=2.0)
    tensors = {"image": image.half(), "encoded": encoded, "latents": latents.half(), "picture": picture}
    shapes = [[k, list(v.shape)] for k, v in vae.state_dict().items()]
    save("vae_taesd", tensors, {"config": json.dumps(config), "seed": "3", "keys": json.dumps(shapes)})


class Clamp(nn.Module):
    def forward(self, x):
        return torch.tanh(x / 3) * 3


class Block(nn.Module):
    """The block of taesd.py; with `pool`, that of TAEF2's coarsest stage."""

    def __init__(self, n, pool=False):
        super().__init__()
        conv = lambda: nn.Conv2d(n, n, 3, padding=1)
        self.conv = nn.Sequential(conv(), nn.ReLU(), conv(), nn.ReLU(), conv())
        one = lambda i, o: nn.Conv2d(i, o, 1, bias=False)
        self.pool = nn.Sequential(one(n, 4 * n), nn.GroupNorm(4, 4 * n), nn.ReLU(), one(4 * n, n)) if pool else None

    def forward(self, x):
        x = x if self.pool is None else x + self.pool(x)
        return torch.relu(self.conv(x) + x)


def original_taef2(n, latent_channels=32):
    """Encoder and decoder as taesd.py numbers their layers."""
    conv = lambda i, o, **k: nn.Conv2d(i, o, 3, padding=1, **k)
    blocks = lambda count, pool=False: [Block(n, pool) for _ in range(count)]
    down, up = (lambda: [conv(n, n, stride=2, bias=False)]), (lambda: [nn.Upsample(scale_factor=2), conv(n, n, bias=False)])
    encoder = [conv(3, n), *blocks(1), *down(), *blocks(3), *down(), *blocks(3), *down(), *blocks(3, True), conv(n, latent_channels)]
    decoder = [Clamp(), conv(latent_channels, n), nn.ReLU(), *blocks(3, True), *up(), *blocks(3), *up(), *blocks(3), *up(), *blocks(1), conv(n, 3)]
    return nn.Sequential(*encoder), nn.Sequential(*decoder)


def record_taef2(name, encoder, decoder, image, latents, texts=None):
    encoded, picture = encoder(image / 2 + 0.5), decoder(latents) * 2 - 1
    lively(name, picture, most=2.0)
    save(name, {"image": image.half(), "encoded": encoded, "latents": latents.half(), "picture": picture}, texts)
    return encoded


def taef2():
    image, latents = uniform(1, 3, 24, 32, seed=1), uniform(1, 32, 3, 5, seed=2, scale=4.0)
    encoder, decoder = (synthetic.fill(m, 3 + i) for i, m in enumerate(original_taef2(8)))
    keys = {part: json.dumps([[k, list(v.shape)] for k, v in m.state_dict().items()]) for part, m in [("encoder", encoder), ("decoder", decoder)]}
    record_taef2("vae_taef2", encoder, decoder, image, latents, keys)
    if data := os.environ.get("AQUATINT_TEST_DATA"):
        encoder, decoder = original_taef2(64)
        for part, module in [("encoder", encoder), ("decoder", decoder)]:
            module.load_state_dict({k: v.float() for k, v in load_file(f"{data}/taef2/taef2_{part}.safetensors").items()})
        # A trained network gives back what it is given, if its architecture is the right one.
        y, x = torch.meshgrid(torch.linspace(-1, 1, 48), torch.linspace(-1, 1, 64), indexing="ij")
        disc = (x**2 + y**2 < 0.4).float() * 1.2 - 0.6
        image = torch.stack([x * 0.8, y * 0.8, disc])[None].half().float()
        encoded = record_taef2("vae_taef2_real", encoder, decoder, image, encoder(image / 2 + 0.5).half().float())
        error = (decoder(encoded) * 2 - 1 - image).pow(2).mean()
        print(f"taef2 there and back: {10 * torch.log10(4 / error):.1f} dB")
        assert error < 0.01


def preprocessing():
    """Pillow's Lanczos both ways, and the inpainting mask down to the latents."""
    pixels = numpy.random.default_rng(5).integers(0, 256, (23, 37, 3), dtype=numpy.uint8)
    picture, tensors = Image.fromarray(pixels), {}
    for width, height in [(64, 48), (16, 8), (37, 40), (24, 23), (9, 64)]:
        resized = VaeImageProcessor().resize(picture, height, width)
        tensors[f"resized.{width}x{height}"] = torch.tensor(numpy.array(resized).astype("int64")).half()
    tensors["pixels"] = torch.tensor(pixels.astype("int64")).half()

    mask_pixels = numpy.random.default_rng(6).integers(0, 256, (19, 30), dtype=numpy.uint8)
    processor = VaeImageProcessor(vae_scale_factor=8, do_normalize=False, do_binarize=True, do_convert_grayscale=True)
    mask = processor.preprocess(Image.fromarray(mask_pixels, "L"), height=40, width=56)
    image = VaeImageProcessor().preprocess(picture, height=40, width=56)
    tensors |= {
        "mask_pixels": torch.tensor(mask_pixels.astype("int64")).half(),
        "mask": mask.half(),
        "mask_latents": torch.nn.functional.interpolate(mask, size=(5, 7)),
        "image": image,
        "masked_image": image * (mask < 0.5),
    }
    save("vae_preprocessing", tensors)


with torch.no_grad():
    autoencoder_kl()
    tiled()
    autoencoder_tiny()
    taef2()
    preprocessing()
