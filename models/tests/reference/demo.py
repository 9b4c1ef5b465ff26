"""Records diffusers' pictures of the demo model:  .ref/bin/python models/tests/reference/demo.py

The weights are the ones in models/demo, so this runs again whenever they are trained again.
"""
import json
import pathlib

import numpy as np
import torch
from diffusers import LCMScheduler, StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline
from PIL import Image
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).parent
DEMO = HERE.parent.parent / "demo"
CASES = {
    "apple": dict(prompt="a red apple", seed=7, num_inference_steps=25, guidance_scale=4.0),
    "lion_lcm": dict(prompt="a lion", seed=8, num_inference_steps=4, guidance_scale=1.0, lora="lcm-lora", lora_scale=1.0),
    "cat_duotone": dict(
        prompt="a cat face, 3d", negative_prompt="", seed=9, num_inference_steps=15, guidance_scale=4.0, lora="duotone", lora_scale=0.8
    ),
    "apple_refined": dict(prompt="a green apple", seed=10, num_inference_steps=25, guidance_scale=4.0, image="apple", strength=0.8),
}


def pipeline(case):
    kind = StableDiffusionXLImg2ImgPipeline if "image" in case else StableDiffusionXLPipeline
    pipe = kind.from_pretrained(DEMO, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    if "lora" in case:
        pipe.load_lora_weights(DEMO / "lora", weight_name=case["lora"] + ".safetensors")
        pipe.fuse_lora(lora_scale=case["lora_scale"])
    if case.get("lora") == "lcm-lora":
        pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    return pipe


def main():
    pictures = {}
    for name, case in CASES.items():
        wanted = {k: v for k, v in case.items() if k in ("prompt", "negative_prompt", "num_inference_steps", "guidance_scale", "strength")}
        if "image" in case:
            wanted["image"] = Image.fromarray(pictures[case["image"]])
        else:
            wanted |= dict(height=128, width=128)
        picture = pipeline(case)(**wanted, generator=torch.Generator().manual_seed(case["seed"])).images[0]
        pictures[name] = np.asarray(picture)
    save_file({k: torch.from_numpy(v.copy()) for k, v in pictures.items()}, HERE.parent / "fixtures" / "demo.safetensors", metadata={"cases": json.dumps(CASES)})


if __name__ == "__main__":
    main()
