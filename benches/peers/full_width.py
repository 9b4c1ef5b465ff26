"""Writes a model folder at a published model's full width with random f16 weights, to load and to time:

    .ref/bin/python benches/peers/full_width.py OUT sd15|sdxl

Configs are those of models/published, tokenizers the built-in model's. `sd15` takes 2.1 GB of disk, `sdxl` 6.9 GB.
"""
import json
import pathlib
import shutil
import sys

import diffusers
import numpy as np
import torch
import transformers
from safetensors.torch import save_file

MODELS = pathlib.Path(__file__).resolve().parents[2] / "models"
# One stretch of normal values, which every tensor takes from another place on.
NORMAL = torch.from_numpy(np.random.default_rng(0).standard_normal(1 << 24, dtype=np.float32))


def values(shape, start):
    count = int(np.prod(shape))
    repeats = (start + count) // len(NORMAL) + 1
    return NORMAL.repeat(repeats)[start : start + count].reshape(shape)


def tensors(module):
    start = 0
    for key, like in module.state_dict().items():
        if not like.is_floating_point():
            continue
        shape = tuple(like.shape)
        start = (start + 7919) % len(NORMAL)
        t = values(shape, start)
        is_norm = key.endswith("weight") and len(shape) == 1
        t = 1 + 0.1 * t if is_norm else t * (0.02 if len(shape) == 1 else int(np.prod(shape[1:])) ** -0.5)
        yield key, t.half()


KINDS = {
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "tokenizer_2": ("transformers", "CLIPTokenizer"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
    "scheduler": ("diffusers", "EulerDiscreteScheduler"),
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
}


def main(out, name):
    published, out = MODELS / "published" / name, pathlib.Path(out)
    index = json.loads((published / "model_index.json").read_text())
    for component, (library, kind) in KINDS.items():
        folder, config = out / component, published / f"{component}.json"
        encoder = component.replace("tokenizer", "text_encoder")
        if not (published / f"{encoder}.json").exists():
            continue
        index[component] = [library, kind]
        folder.mkdir(parents=True, exist_ok=True)
        if component == "scheduler":
            shutil.copy(config, folder / "scheduler_config.json")
        elif component.startswith("tokenizer"):
            shutil.copytree(MODELS / "demo" / component, folder, dirs_exist_ok=True)
        else:
            shutil.copy(config, folder / "config.json")
            weights(folder, library, kind)
            print(f"{name}/{component}", flush=True)
    if name == "sd15":
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
    (out / "model_index.json").write_text(json.dumps(index, indent=2))


def weights(folder, library, kind):
    with torch.device("meta"):
        if library == "transformers":
            module = getattr(transformers, kind)(transformers.CLIPTextConfig.from_pretrained(folder))
            file = "model.safetensors"
        else:
            module = getattr(diffusers, kind).from_config(json.loads((folder / "config.json").read_text()))
            file = "diffusion_pytorch_model.safetensors"
    save_file(dict(tensors(module)), folder / file, metadata={"format": "pt"})


main(sys.argv[1], sys.argv[2])
