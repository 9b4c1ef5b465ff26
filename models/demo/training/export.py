"""Writes the diffusers folder from a run: f16 safetensors, configs, tokenizers, LoRAs.

    python export.py --run run --out ..
"""
import argparse
import json
import os
import shutil

import torch
from diffusers import StableDiffusionXLPipeline

import network as net
import vae as autoencoder


def pipeline(run):
    network, _ = net.checkpoint(run)
    network.cpu()
    one, two = net.Tokens(run).tokenizers
    return StableDiffusionXLPipeline(
        vae=autoencoder.load(run).cpu(), text_encoder=network.text_encoder, text_encoder_2=network.text_encoder_2, tokenizer=one, tokenizer_2=two,
        unet=network.unet, scheduler=net.scheduler(), force_zeros_for_empty_prompt=True, add_watermarker=False)


def main(a):
    pipeline(a.run).to(torch.float16).save_pretrained(a.out, safe_serialization=True)
    index = os.path.join(a.out, 'model_index.json')
    settings = json.load(open(index))
    settings.update(default_num_inference_steps=25, default_guidance_scale=4.0)
    with open(index, 'w') as f:
        f.write(json.dumps(settings, indent=2) + '\n')
    for name in ('lcm-lora', 'duotone'):
        path = os.path.join(a.run, name + '.safetensors')
        if os.path.exists(path):
            os.makedirs(os.path.join(a.out, 'lora'), exist_ok=True)
            shutil.copy(path, os.path.join(a.out, 'lora', name + '.safetensors'))
    total = sum(os.path.getsize(os.path.join(d, f)) for d, _, fs in os.walk(a.out) for f in fs if f.endswith('.safetensors'))
    print(f'{total / 1e6:.1f} MB of weights')


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--run', required=True)
    p.add_argument('--out', required=True)
    main(p.parse_args())
