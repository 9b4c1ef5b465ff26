"""A first SDXL picture by diffusers from a folder, in f16 on the first GPU: cold_start.py FOLDER STEPS"""
import sys

import torch
from diffusers import StableDiffusionXLPipeline

torch.zeros(1, device="cuda")
pipe = StableDiffusionXLPipeline.from_pretrained(sys.argv[1], torch_dtype=torch.float16, local_files_only=True, add_watermarker=False)
pipe.to("cuda")
pipe("a red cat", num_inference_steps=int(sys.argv[2]), generator=torch.Generator().manual_seed(1)).images[0].save("/dev/null", "png")
