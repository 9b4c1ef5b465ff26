"""Whole pictures by diffusers on the weights of `--dummy-weights`, for the same work as `aquatint generate`:

    picture.py MODEL SIDE STEPS GUIDANCE SCHEDULER RUNS [OUT]     MODEL: sd15, sdxl, flux-dev, flux-schnell

Prompts are encoded beforehand, as `aquatint generate` has them from its first picture on. Prints JSON: the milliseconds
of each picture, decoding included. With OUT the last one is written there. AQUATINT_DEVICE, AQUATINT_DTYPE and
AQUATINT_COMPILE are as for component.py; AQUATINT_LAYERS=N builds N layers of everything, to try this out.
"""
import json
import os
import sys
import time

import diffusers
import torch
import transformers

import dummy

name, side, steps, guidance, scheduler, runs = sys.argv[1], *map(int, sys.argv[2:4]), float(sys.argv[4]), sys.argv[5], int(sys.argv[6])
DEVICE = os.environ.get("AQUATINT_DEVICE", "cpu")
TYPE = getattr(torch, dict(f32="float32", f16="float16", bf16="bfloat16")[os.environ.get("AQUATINT_DTYPE", "f16" if DEVICE == "cuda" else "f32")])
LAYERS = int(os.environ.get("AQUATINT_LAYERS", "0"))
PROMPT = "a photo of a red cat"


def part(component, make):
    config = {k: v for k, v in dummy.config(name, component).items() if not k.startswith("_")}
    for key in ("num_layers", "num_single_layers", "num_hidden_layers"):
        if LAYERS and key in config:
            config[key] = LAYERS
    return dummy.build(lambda: make(config), TYPE, DEVICE)


def clip(kind):
    return lambda config: kind(transformers.CLIPTextConfig(**config))


def schedule():
    config = dummy.config(name, "scheduler")
    kinds = dict(Euler="EulerDiscreteScheduler", LCM="LCMScheduler", FlowMatch="FlowMatchEulerDiscreteScheduler")
    kind = getattr(diffusers, kinds[scheduler])
    return kind.from_config({k: v for k, v in config.items() if k != "_class_name"})


def stable_diffusion():
    tokenizer = lambda folder: transformers.CLIPTokenizer.from_pretrained(dummy.MODELS / "demo" / folder)
    unet = part("unet", diffusers.UNet2DConditionModel.from_config)
    vae = part("vae", diffusers.AutoencoderKL.from_config)
    first = part("text_encoder", clip(transformers.CLIPTextModel))
    if name == "sdxl":
        second = part("text_encoder_2", clip(transformers.CLIPTextModelWithProjection))
        parts = dict(text_encoder_2=second, tokenizer_2=tokenizer("tokenizer_2"), add_watermarker=False)
        kind = diffusers.StableDiffusionXLPipeline
    else:
        parts = dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)
        kind = diffusers.StableDiffusionPipeline
    pipe = kind(unet=unet, vae=vae, text_encoder=first, tokenizer=tokenizer("tokenizer"), scheduler=schedule(), **parts)
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    encoded = pipe.encode_prompt(PROMPT, device=DEVICE, num_images_per_prompt=1, do_classifier_free_guidance=guidance > 1)
    return pipe, dict(zip(names, encoded))


def flux():
    transformer = part("transformer", diffusers.FluxTransformer2DModel.from_config)
    vae = part("vae", diffusers.AutoencoderKL.from_config)
    pipe = diffusers.FluxPipeline(
        transformer=transformer, vae=vae, scheduler=schedule(), text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None
    )
    config, tokens = transformer.config, 256 if name == "flux-schnell" else 512
    wave = lambda *shape: torch.sin(0.1 * torch.arange(torch.Size(shape).numel(), dtype=torch.float32)).reshape(shape).to(DEVICE, TYPE)
    return pipe, dict(prompt_embeds=wave(1, tokens, config.joint_attention_dim), pooled_prompt_embeds=wave(1, config.pooled_projection_dim))


@torch.no_grad()
def main():
    torch.set_num_threads(int(os.environ.get("RAYON_NUM_THREADS", "2")))
    pipe, encoded = flux() if name.startswith("flux") else stable_diffusion()
    pipe.set_progress_bar_config(disable=True)
    denoiser = "transformer" if name.startswith("flux") else "unet"
    if DEVICE == "cuda":
        getattr(pipe, denoiser).to(memory_format=torch.channels_last)
        pipe.vae.to(memory_format=torch.channels_last)
    if os.environ.get("AQUATINT_COMPILE"):
        mode = os.environ.get("AQUATINT_COMPILE_MODE", "max-autotune")
        setattr(pipe, denoiser, torch.compile(getattr(pipe, denoiser), mode=mode))
        pipe.vae.decode = torch.compile(pipe.vae.decode, mode=mode)
    milliseconds = []
    for _ in range(runs):
        generator = torch.Generator().manual_seed(1)
        start = time.perf_counter()
        made = pipe(
            height=side, width=side, num_inference_steps=steps, guidance_scale=guidance, generator=generator, **encoded
        ).images[0]
        milliseconds.append((time.perf_counter() - start) * 1e3)
    if len(sys.argv) > 7:
        made.save(sys.argv[7])
    print(json.dumps(dict(milliseconds=milliseconds)))


main()
