"""A contact sheet of 36 prompts.

    python sheet.py --model .. --png contact-sheet.png [--lora ../lora/lcm-lora.safetensors --steps 4 --guidance 1]
"""
import argparse
import time

import torch
from diffusers import LCMScheduler, StableDiffusionXLPipeline
from PIL import Image, ImageDraw

PROMPTS = '''a red apple;a lion;a yellow star, flat;a blue car;a slice of pizza;a cat face, 3d;a strawberry;a hamburger;an avocado;
a birthday cake;a dog face;a panda;a frog;a fish;an octopus;a red heart;a blue heart;a smiling face with sunglasses;a crying face;
a rocket;a sailboat;a bicycle;a house;a tree;a sunflower;a cactus;a crescent moon;a rainbow;a snowman;a soccer ball;a guitar;a key;
a red apple on a blue background;two strawberries;a cat face and a red heart;a purple car, 3d'''.replace('\n', '').split(';')
SIDE, COLUMNS = 128, 9


def load(model, lora=None):
    pipe = StableDiffusionXLPipeline.from_pretrained(model, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    if lora:
        pipe.load_lora_weights(lora)
        if 'lcm' in lora:
            pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    return pipe


def draw(pipe, prompt, seed, steps, guidance):
    return pipe(prompt, num_inference_steps=steps, guidance_scale=guidance, width=SIDE, height=SIDE, generator=torch.Generator().manual_seed(seed)).images[0]


def main(a):
    pipe, start = load(a.model, a.lora), time.time()
    sheet = Image.new('RGB', (COLUMNS * (SIDE + 6), -(-len(PROMPTS) // COLUMNS) * (SIDE + 22)), 'white')
    for i, prompt in enumerate(PROMPTS):
        at = (i % COLUMNS * (SIDE + 6) + 3, i // COLUMNS * (SIDE + 22) + 2)
        sheet.paste(draw(pipe, prompt, a.seed + i, a.steps, a.guidance), at)
        ImageDraw.Draw(sheet).text((at[0], at[1] + SIDE + 2), prompt[:24], fill='black')
    sheet.save(a.png, optimize=True)
    print(f'{(time.time() - start) / len(PROMPTS):.2f} s a picture')


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--model', required=True)
    p.add_argument('--png', required=True)
    p.add_argument('--lora')
    p.add_argument('--steps', type=int, default=25)
    p.add_argument('--guidance', type=float, default=4.0)
    p.add_argument('--seed', type=int, default=7)
    main(p.parse_args())
