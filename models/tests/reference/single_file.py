"""Records what diffusers makes of single files:  .ref/bin/python models/tests/reference/single_file.py

The wheel `lora_train` 0.1.2 from PyPI (MIT), which is fetched into .ref, lists in `toolkit/keymaps` every key of the
published files of SD 1, SD 2, SDXL and its refiner; FLUX's names are those of `flux/modules/layers.py` of Black Forest
Labs, in the layout of ComfyUI's all-in-one files. Widths are small, everything else has its published extent. Weights are
synthetic (synthetic.py), so a fixture holds but the keys with their shapes, and of each tensor that diffusers' own
conversion makes of them a hash of its name, shape and bytes.
"""
import inspect
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel, UNet2DConditionModel
from diffusers.loaders import single_file_utils as s
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

import synthetic

FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures"
WHEEL = pathlib.Path(__file__).parents[3] / ".ref/lora_train"
KEYMAPS = WHEEL / "toolkit/keymaps"
PUBLISHED = pathlib.Path(__file__).parents[2] / "published"
OPEN_CLIP = {"te_": "cond_stage_model.model.", "te1_": "conditioner.embedders.1.model."}


def config(file, **changes):
    return {k: v for k, v in json.loads((PUBLISHED / file).read_text()).items() if not k.startswith("_")} | changes


def narrow(file, channels, **changes):
    small = dict(block_out_channels=channels, norm_num_groups=4)
    return config(file, **small | changes)


def clip(file, width, projection=False, **changes):
    c = CLIPTextConfig(**config(file, vocab_size=64, hidden_size=width, intermediate_size=2 * width, num_attention_heads=2, projection_dim=width) | changes)
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(c)


def vae(file):
    return AutoencoderKL(**narrow(file, [4, 8, 16, 16]))


def models(name):
    """The diffusers models of a family, by the prefix that their keys have in the keymaps."""
    if name == "sd1":
        unet = narrow("sd15/unet.json", [8, 16, 32, 32], cross_attention_dim=8)
        return dict(unet_=UNet2DConditionModel(**unet), vae_=vae("sd15/vae.json"), te_=clip("sd15/text_encoder.json", 8))
    if name == "sd2":
        unet = narrow("sd21/unet.json", [8, 16, 32, 32], cross_attention_dim=12, attention_head_dim=2)
        return dict(unet_=UNet2DConditionModel(**unet), vae_=vae("sd21/vae.json"), te_=clip("sd21/text_encoder.json", 12))
    pooled = dict(attention_head_dim=2, addition_time_embed_dim=4)
    if name == "sdxl":
        unet = narrow("sdxl/unet.json", [8, 16, 32], cross_attention_dim=20, projection_class_embeddings_input_dim=36, **pooled)
        first = dict(te0_=clip("sdxl/text_encoder.json", 8))
    else:
        unet = narrow("sdxl/unet_refiner.json", [8, 16, 32, 32], cross_attention_dim=12, projection_class_embeddings_input_dim=32, **pooled)
        first = {}
    return first | dict(unet_=UNet2DConditionModel(**unet), vae_=vae("sdxl/vae.json"), te1_=clip("sdxl/text_encoder_2.json", 12, True))


def shapes_of(name, parts):
    """Original key -> shape, of all keys that the published file has."""
    keymap = json.loads((KEYMAPS / f"stable_diffusion_{name}.json").read_text())
    own = {prefix + k: tuple(v.shape) for prefix, model in parts.items() for k, v in model.state_dict().items()}
    fused = {k for k in keymap["ldm_diffusers_operator_map"]}
    squeezed = set(keymap["ldm_diffusers_shape_map"])
    shapes = {}
    for ldm, diffusers in keymap["ldm_diffusers_keymap"].items():
        if ldm in fused:
            first = own[keymap["ldm_diffusers_operator_map"][ldm]["cat"][0]]
            shapes[ldm] = (3 * first[0], *first[1:])
        elif isinstance(diffusers, str) and diffusers in own:
            shapes[ldm] = own[diffusers] + ((1, 1) if ldm in squeezed else ())
    for ldm, operator in keymap["ldm_diffusers_operator_map"].items():
        first = own[operator["cat"][0]]
        shapes[ldm] = (3 * first[0], *first[1:])
    missing = set(keymap["ldm_diffusers_keymap"]) - set(shapes)
    assert not missing, sorted(missing)[:5]
    published = KEYMAPS / f"stable_diffusion_{name}_unmatched.json"
    width = next(m.config.hidden_size for p, m in parts.items() if p in ("te_", "te1_"))
    for ldm, facts in (json.loads(published.read_text())["ldm"] if published.exists() else {}).items():
        # What belongs to the text encoder's last layer and projection has the reduced width.
        shapes[ldm] = tuple({1024: width, 1280: width, 3072: 3 * width, 4096: 2 * width}.get(n, n) for n in facts["shape"])
    return shapes


def bfl_shapes(transformer):
    width, mlp = transformer.inner_dim, 4 * transformer.inner_dim
    c = transformer.config
    shapes = {}

    def linear(name, out, inside):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, inside), (out,)

    linear("img_in", width, c.in_channels)
    linear("txt_in", width, c.joint_attention_dim)
    for embedder, inside in (("time_in", 256), ("vector_in", c.pooled_projection_dim), ("guidance_in", 256)):
        linear(f"{embedder}.in_layer", width, inside)
        linear(f"{embedder}.out_layer", width, width)
    for i in range(c.num_layers):
        for stream in ("img", "txt"):
            block = f"double_blocks.{i}.{stream}"
            linear(f"{block}_mod.lin", 6 * width, width)
            linear(f"{block}_attn.qkv", 3 * width, width)
            linear(f"{block}_attn.proj", width, width)
            linear(f"{block}_mlp.0", mlp, width)
            linear(f"{block}_mlp.2", width, mlp)
            for norm in ("query", "key"):
                shapes[f"{block}_attn.norm.{norm}_norm.scale"] = (c.attention_head_dim,)
    for i in range(c.num_single_layers):
        block = f"single_blocks.{i}"
        linear(f"{block}.linear1", 3 * width + mlp, width)
        linear(f"{block}.linear2", width, width + mlp)
        linear(f"{block}.modulation.lin", 3 * width, width)
        for norm in ("query", "key"):
            shapes[f"{block}.norm.{norm}_norm.scale"] = (c.attention_head_dim,)
    linear("final_layer.linear", c.in_channels, width)
    linear("final_layer.adaLN_modulation.1", 2 * width, width)
    return shapes


def flux_conversion(width):
    """diffusers' conversion, whose width is a number in its source."""
    source = inspect.getsource(s.convert_flux_transformer_checkpoint_to_diffusers)
    source, count = re.subn(r"inner_dim = 3072", f"inner_dim = {width}", source)
    assert count == 1
    exec(source, vars(s), scope := {})
    return scope["convert_flux_transformer_checkpoint_to_diffusers"]


def flux():
    transformer = FluxTransformer2DModel(**config("flux/transformer_dev.json", num_attention_heads=2, attention_head_dim=4, in_channels=4, joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=[2, 2]))  # fmt: skip
    autoencoder, first = vae("flux/vae.json"), clip("flux/text_encoder.json", 8)
    t5 = T5EncoderModel(T5Config(**config("flux/text_encoder_2.json", vocab_size=64, d_model=8, d_kv=4, d_ff=16, num_heads=2)))
    shapes = {f"model.diffusion_model.{k}": v for k, v in bfl_shapes(transformer).items()}
    keymap = json.loads((KEYMAPS / "stable_diffusion_sd1.json").read_text())
    squeezed = set(keymap["ldm_diffusers_shape_map"])
    own = autoencoder.state_dict()
    for ldm, diffusers in keymap["ldm_diffusers_keymap"].items():
        if ldm.startswith("first_stage_model.") and diffusers.removeprefix("vae_") in own:
            shape = tuple(own[diffusers.removeprefix("vae_")].shape)
            shapes[ldm.replace("first_stage_model.", "vae.")] = shape + ((1, 1) if ldm in squeezed else ())
    for prefix, model in (("clip_l", first), ("t5xxl", t5)):
        shapes |= {f"text_encoders.{prefix}.transformer.{k}": tuple(v.shape) for k, v in model.state_dict().items() if "embed_tokens" not in k}
    state = {k: torch.from_numpy(synthetic.tensor(k, v)) for k, v in shapes.items()}
    denoiser = {k: v for k, v in state.items() if k.startswith("model.")}
    # A plain copy has no prefix, and must not meet the others' keys.
    denoiser = {k.removeprefix("model.diffusion_model."): v for k, v in denoiser.items()}
    converted = dict(
        transformer=flux_conversion(transformer.inner_dim)(denoiser),
        vae=s.convert_ldm_vae_checkpoint(state, autoencoder.config),
        text_encoder=s.convert_ldm_clip_checkpoint(state, "text_encoders.clip_l.transformer."),
        text_encoder_2=s.convert_sd3_t5_checkpoint_to_diffusers(dict(state)),
    )
    check(dict(transformer=transformer, vae=autoencoder, text_encoder=first), converted)
    write("flux", shapes, converted)


def check(models, converted):
    """All that a model of diffusers needs, and nothing else."""
    for component, model in models.items():
        expected = {k: v.shape for k, v in model.state_dict().items() if not k.endswith("position_ids")}
        made = {k: v.shape for k, v in converted[component].items() if not k.endswith("position_ids")}
        assert expected == made, (component, set(expected.items()) ^ set(made.items()))


def stable_diffusion(name):
    parts = models(name)
    shapes = shapes_of(name, parts)
    state = {k: torch.from_numpy(synthetic.tensor(k, v)) for k, v in shapes.items()}
    converted = dict(
        unet=s.convert_ldm_unet_checkpoint(dict(state), parts["unet_"].config),
        vae=s.convert_ldm_vae_checkpoint(dict(state), parts["vae_"].config),
    )
    diffusers = dict(unet=parts["unet_"], vae=parts["vae_"])
    if name == "sd1":
        converted["text_encoder"] = s.convert_ldm_clip_checkpoint(state)
        diffusers["text_encoder"] = parts["te_"]
    if name == "sd2":
        converted["text_encoder"] = s.convert_open_clip_checkpoint(parts["te_"], state, "cond_stage_model.model.")
        diffusers["text_encoder"] = parts["te_"]
    if name == "sdxl":
        converted["text_encoder"] = s.convert_ldm_clip_checkpoint(state)
        diffusers["text_encoder"] = parts["te0_"]
    if name in ("sdxl", "refiner"):
        prefix = "conditioner.embedders.1.model." if name == "sdxl" else "conditioner.embedders.0.model."
        converted["text_encoder_2"] = s.convert_open_clip_checkpoint(parts["te1_"], state, prefix)
        diffusers["text_encoder_2"] = parts["te1_"]
    check(diffusers, converted)
    write(name, shapes, converted)


def fnv1a(data):
    h = 0xCBF29CE484222325
    for b in data:
        h = ((h ^ b) * 0x100000001B3) & synthetic.MASK
    return h


def folded(shapes):
    """Sorted keys, each as the length of what it has in common with the one before, the rest, and its shape."""
    lines, last = [], ""
    for key in sorted(shapes):
        common = next((i for i, (a, b) in enumerate(zip(key, last)) if a != b), min(len(key), len(last)))
        lines.append(f"{common} {key[common:]} {','.join(map(str, shapes[key]))}")
        last = key
    return "\n".join(lines)


def write(name, shapes, converted):
    hashes = {}
    for component, tensors in converted.items():
        tensors = {k: v for k, v in tensors.items() if not k.endswith("position_ids")}
        line = lambda k, v: f"{k} {list(v.shape)} ".encode() + v.contiguous().numpy().astype("<f4").tobytes()  # noqa: E731
        hashes[component] = "".join(f"{fnv1a(line(k, tensors[k])) & 0xFFFFFFFF:08x}" for k in sorted(tensors))
    texts = dict(keys=folded(shapes), hashes=json.dumps(hashes))
    path = FIXTURES / f"single_file_{name}.safetensors"
    save_file({"keys": torch.tensor([len(shapes)])}, path, metadata=texts)
    print(name, len(shapes), "keys", {c: len(h) // 8 for c, h in hashes.items()}, path.stat().st_size, "bytes")


if not KEYMAPS.is_dir():
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", WHEEL, "lora_train==0.1.2"], check=True)
with torch.no_grad():
    for family in ("sd1", "sd2", "sdxl", "refiner"):
        stable_diffusion(family)
    flux()
