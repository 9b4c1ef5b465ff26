"""Records whole pictures of diffusers' pipelines on tiny models:  .ref/bin/python models/tests/reference/pipeline.py

Weights are synthetic (synthetic.py); the fixture holds configs, the names and shapes of all tensors, the requests and
the pictures, so that the tests can write the same model folder and ask for the same pictures.
"""
import json
import sys

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import clip
import synthetic
from pipeline_parts import FIXTURES, picture, text, tokenizer

CROSS_DOWN, CROSS_UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")

UNET = dict(sample_size=8, layers_per_block=1, block_out_channels=[32, 64], norm_num_groups=8)
UNET_SD = UNET | dict(
    down_block_types=[CROSS_DOWN, "DownBlock2D"], up_block_types=["UpBlock2D", CROSS_UP], attention_head_dim=8, cross_attention_dim=32
)
UNET_SD21 = UNET_SD | dict(use_linear_projection=True, attention_head_dim=[4, 8])
UNET_SDXL = UNET | dict(
    down_block_types=["DownBlock2D", CROSS_DOWN],
    up_block_types=[CROSS_UP, "UpBlock2D"],
    transformer_layers_per_block=[1, 2],
    attention_head_dim=[2, 4],
    use_linear_projection=True,
    cross_attention_dim=64,
    addition_embed_type="text_time",
    addition_time_embed_dim=8,
    projection_class_embeddings_input_dim=6 * 8 + 32,
)
UNET_REFINER = UNET_SDXL | dict(cross_attention_dim=32, projection_class_embeddings_input_dim=5 * 8 + 32)
VAE = dict(
    in_channels=3,
    out_channels=3,
    latent_channels=4,
    sample_size=64,
    norm_num_groups=8,
    block_out_channels=[16, 32, 32, 32],
    layers_per_block=1,
    down_block_types=["DownEncoderBlock2D"] * 4,
    up_block_types=["UpDecoderBlock2D"] * 4,
)


MODELS = {
    "sd15": dict(
        model_index=dict(_class_name="StableDiffusionPipeline"),
        scheduler=dict(_class_name="DDIMScheduler", **BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        text_encoder=text("quick_gelu"),
        unet=UNET_SD,
        vae=VAE | dict(scaling_factor=0.18215),
    ),
    "sd21": dict(
        model_index=dict(_class_name="StableDiffusionPipeline"),
        scheduler=dict(_class_name="DDIMScheduler", **BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type="v_prediction"),
        text_encoder=text("gelu"),
        unet=UNET_SD21,
        vae=VAE | dict(scaling_factor=0.18215),
    ),
    "sd15_inpaint": dict(
        model_index=dict(_class_name="StableDiffusionInpaintPipeline"),
        scheduler=dict(_class_name="PNDMScheduler", **BETAS, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1),
        text_encoder=text("quick_gelu"),
        unet=UNET_SD | dict(in_channels=9),
        vae=VAE | dict(scaling_factor=0.18215),
    ),
    "sdxl": dict(
        model_index=dict(_class_name="StableDiffusionXLPipeline", force_zeros_for_empty_prompt=True),
        scheduler=dict(_class_name="EulerDiscreteScheduler", **BETAS, timestep_spacing="leading", steps_offset=1),
        text_encoder=text("quick_gelu"),
        text_encoder_2=text("gelu") | dict(architectures=["CLIPTextModelWithProjection"]),
        unet=UNET_SDXL,
        vae=VAE | dict(scaling_factor=0.13025),
    ),
    "sdxl_inpaint": dict(
        model_index=dict(_class_name="StableDiffusionXLInpaintPipeline", force_zeros_for_empty_prompt=True),
        scheduler=dict(_class_name="EulerDiscreteScheduler", **BETAS, timestep_spacing="leading", steps_offset=1),
        text_encoder=text("quick_gelu"),
        text_encoder_2=text("gelu") | dict(architectures=["CLIPTextModelWithProjection"]),
        unet=UNET_SDXL | dict(in_channels=9),
        vae=VAE | dict(scaling_factor=0.13025),
    ),
    "refiner": dict(
        model_index=dict(_class_name="StableDiffusionXLImg2ImgPipeline", force_zeros_for_empty_prompt=True, requires_aesthetics_score=True),
        scheduler=dict(_class_name="EulerDiscreteScheduler", **BETAS, timestep_spacing="leading", steps_offset=1),
        text_encoder_2=text("gelu") | dict(architectures=["CLIPTextModelWithProjection"]),
        unet=UNET_REFINER,
        vae=VAE | dict(scaling_factor=0.13025),
    ),
}  # fmt: skip

SCHEDULERS = {
    c.__name__: c
    for c in (
        DDIMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler,
        LCMScheduler, PNDMScheduler, UniPCMultistepScheduler,
    )
}  # fmt: skip


def components(name, seed):
    model = MODELS[name]
    scheduler = dict(model["scheduler"])
    parts = dict(
        unet=synthetic.fill(UNet2DConditionModel(**model["unet"]), seed),
        vae=synthetic.fill(AutoencoderKL(**model["vae"]), seed),
        scheduler=SCHEDULERS[scheduler.pop("_class_name")](**scheduler),
        text_encoder=None,
        tokenizer=tokenizer("<|endoftext|>"),
    )
    if "text_encoder" in model:
        parts["text_encoder"] = synthetic.fill(CLIPTextModel(CLIPTextConfig(**model["text_encoder"])), seed)
    if "text_encoder_2" in model:
        parts["text_encoder_2"] = synthetic.fill(CLIPTextModelWithProjection(CLIPTextConfig(**model["text_encoder_2"])), seed + 1)
        parts["tokenizer_2"] = tokenizer("!")
        parts["force_zeros_for_empty_prompt"] = True
    return parts


# What diffusers has no syntax for: the prompt in the web UI's, and its parts with their weights.
WEIGHTED = "a (red:1.4) cat, [blurry], ((house))"
LONG = ", ".join(f"a {colour} {thing}" for colour in ("red", "blue", "green") for thing in ("cat", "dog", "house", "tree", "car", "boat", "hat", "sun"))
PARTS = {
    WEIGHTED: [[("a", 1.0), ("red", 1.4), ("cat,", 1.0), ("blurry", 1 / 1.1), (",", 1.0), ("house", 1.1**2)]],
    LONG: [[(LONG, 1.0)]],
    "": [[("", 1.0)]],
}

# What a request leaves out is 64x64, 6 steps, guidance 5, seed 7, no negative prompt.
A, B = "a photo of a red cat", "blurry, low quality"
CASES = {
    "sd15": {
        "txt2img": dict(prompt=A, negative_prompt=B, num_inference_steps=20),
        "no_negative": dict(prompt=A, guidance_scale=7.5),
        "no_guidance": dict(prompt=A, guidance_scale=1.0),
        "odd_size": dict(prompt=A, negative_prompt=B, height=40, width=72),
        "clip_skip": dict(prompt=A, negative_prompt=B, clip_skip=1),
        "euler_a": dict(prompt=A, scheduler="EulerAncestralDiscreteScheduler"),
        "dpm": dict(prompt=A, scheduler="DPMSolverMultistepScheduler"),
        "heun": dict(prompt=A, scheduler="HeunDiscreteScheduler"),
        "weighted": dict(prompt=WEIGHTED, negative_prompt=""),
        "long": dict(prompt=LONG, negative_prompt=""),
        "lora": dict(prompt=A, negative_prompt=B, lora=0.8),
        "img2img": dict(prompt=A, negative_prompt=B, mode="img2img", strength=0.6, num_inference_steps=10),
        "img2img_lcm": dict(prompt=A, mode="img2img", strength=0.6, scheduler="LCMScheduler", guidance_scale=1.5),
        "inpaint": dict(prompt=A, negative_prompt=B, mode="inpaint", strength=0.8, num_inference_steps=10),
        "inpaint_euler_a": dict(prompt=A, mode="inpaint", strength=1.0, scheduler="EulerAncestralDiscreteScheduler"),
    },
    "sd21": {
        "txt2img": dict(prompt=A, negative_prompt=B),
        "unipc": dict(prompt=A, negative_prompt=B, scheduler="UniPCMultistepScheduler"),
        "img2img": dict(prompt=A, mode="img2img", strength=0.7),
    },
    "sd15_inpaint": {
        "inpaint": dict(prompt=A, negative_prompt=B, mode="inpaint", strength=1.0),
        "inpaint_part": dict(prompt=A, mode="inpaint", strength=0.7),
    },
    "sdxl": {
        "txt2img": dict(prompt=A, negative_prompt=B, num_inference_steps=12),
        "zeroed_negative": dict(prompt=A),
        "empty_negative": dict(prompt=A, negative_prompt=""),
        "no_guidance": dict(prompt=A, guidance_scale=0.0),
        "odd_size": dict(prompt=A, negative_prompt=B, height=72, width=40),
        "micro": dict(prompt=A, negative_prompt=B, original_size=(512, 384), crops_coords_top_left=(16, 8), target_size=(96, 64)),
        "lcm": dict(prompt=A, guidance_scale=1.0, num_inference_steps=4, scheduler="LCMScheduler"),
        "clip_skip": dict(prompt=A, negative_prompt=B, clip_skip=1),
        "weighted": dict(prompt=WEIGHTED),
        "long": dict(prompt=LONG),
        "lora": dict(prompt=A, negative_prompt=B, lora=0.8),
        "img2img": dict(prompt=A, negative_prompt=B, mode="img2img", strength=0.5),
        "inpaint": dict(prompt=A, negative_prompt=B, mode="inpaint", strength=0.8),
    },
    "sdxl_inpaint": {
        "inpaint": dict(prompt=A, negative_prompt=B, mode="inpaint", strength=1.0),
        "inpaint_part": dict(prompt=A, mode="inpaint", strength=0.6),
    },
    "refiner": {
        "alone": dict(prompt=A, negative_prompt=B, mode="img2img", strength=0.5),
        "after_base": dict(prompt=A, negative_prompt=B, mode="refine", num_inference_steps=10),
    },
}  # fmt: skip


def encode(parts, prompt):
    """The embeddings of a prompt of PARTS, as clip.py writes the formula out."""
    xl = "text_encoder_2" in parts
    embeds, _ = clip.emphasised(parts["tokenizer"], parts["text_encoder"], PARTS[prompt], xl)
    if not xl:
        return dict(prompt_embeds=embeds)
    second, pooled = clip.emphasised(parts["tokenizer_2"], parts["text_encoder_2"], PARTS[prompt], True)
    return dict(prompt_embeds=torch.cat([embeds, second], 2), pooled_prompt_embeds=pooled)


def lora(name, parts):
    """A kohya LoRA of rank 2 for all attentions, written beside the fixture."""
    r, tensors = torch.Generator().manual_seed(3), {}
    prefixes = dict(unet="lora_unet", text_encoder="lora_te1" if "text_encoder_2" in parts else "lora_te", text_encoder_2="lora_te2")
    for component, prefix in prefixes.items():
        modules = parts[component].named_modules() if parts.get(component) else []
        for key, module in modules:
            if isinstance(module, torch.nn.Linear) and key.split(".")[-1] in ("to_q", "to_v", "0", "q_proj", "k_proj", "v_proj", "out_proj") and "attn" in key:
                layer = f"{prefix}_{key.replace('.', '_')}"
                tensors[f"{layer}.lora_down.weight"] = torch.randn(2, module.in_features, generator=r) / module.in_features**0.5
                tensors[f"{layer}.lora_up.weight"] = torch.randn(module.out_features, 2, generator=r) / 8
                tensors[f"{layer}.alpha"] = torch.tensor(4.0)
    path = FIXTURES / f"pipeline_{name}_lora.safetensors"
    save_file({k: v.half() for k, v in tensors.items()}, path)
    return path


def run(name, parts, case, prepare=None):
    """`prepare` is given the pipeline before it runs."""
    case = dict(height=64, width=64, num_inference_steps=6, guidance_scale=5.0) | case
    mode, scheduler = case.pop("mode", "txt2img"), case.pop("scheduler", None)
    xl = "text_encoder_2" in parts
    if mode != "txt2img":
        case["image"], mask = picture(case["height"], case["width"])
    if mode == "inpaint":
        case["mask_image"] = mask
    if mode == "img2img":
        del case["height"], case["width"]
    generator = torch.Generator().manual_seed(7)
    scale = case.pop("lora", None)
    if case["prompt"] in PARTS:
        case |= encode(parts, case.pop("prompt"))
        if "negative_prompt" in case:
            negative = encode(parts, case.pop("negative_prompt"))["prompt_embeds"]
            case["negative_prompt_embeds"] = negative.repeat(1, case["prompt_embeds"].shape[1] // 77, 1)
    if mode == "refine":
        del case["image"]
        base = StableDiffusionXLPipeline(**components("sdxl", 0), add_watermarker=False)
        base.set_progress_bar_config(disable=True)
        case["image"] = base(**case, denoising_end=0.8, output_type="latent", generator=generator).images
        case |= dict(denoising_start=0.8)
        parts = parts | dict(vae=base.vae)  # published as one and the same
        del case["height"], case["width"]
        mode = "img2img"
    sd = dict(txt2img=StableDiffusionPipeline, img2img=StableDiffusionImg2ImgPipeline, inpaint=StableDiffusionInpaintPipeline)
    sdxl = dict(txt2img=StableDiffusionXLPipeline, img2img=StableDiffusionXLImg2ImgPipeline, inpaint=StableDiffusionXLInpaintPipeline)
    extra = dict(add_watermarker=False) if xl else dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    if name == "refiner":
        extra |= dict(tokenizer=None, requires_aesthetics_score=True)
    pipe = (sdxl if xl else sd)[mode](**(parts | extra))
    pipe.set_progress_bar_config(disable=True)
    if scheduler:
        pipe.scheduler = SCHEDULERS[scheduler].from_config(pipe.scheduler.config)
    if scale:
        file = lora(name, parts)
        pipe.load_lora_weights(str(file.parent), weight_name=file.name)
        pipe.fuse_lora(lora_scale=scale)
    if prepare:
        prepare(pipe)
    pixels = np.asarray(pipe(**case, generator=generator).images[0])
    if scale:
        pipe.unfuse_lora()
        pipe.unload_lora_weights()
    return pixels


@torch.no_grad()
def main():
    for seed, name in enumerate(MODELS):
        if len(sys.argv) > 1 and name not in sys.argv[1:]:
            continue
        seed = 0 if name.startswith("sdxl") else seed
        parts = components(name, seed)
        shapes = {
            c: {k: list(v.shape) for k, v in parts[c].state_dict().items() if v.is_floating_point()}
            for c in ("unet", "vae", "text_encoder", "text_encoder_2")
            if parts.get(c) is not None
        }
        tensors = {}
        for case, request in CASES[name].items():
            pixels = run(name, parts, dict(request))
            saturated = np.mean((pixels == 0) | (pixels == 255))
            print(name, case, pixels.shape, f"std {pixels.std():.1f}, saturated {saturated:.0%}")
            tensors[case] = torch.from_numpy(pixels.copy())
        texts = dict(model=json.dumps(MODELS[name]), shapes=json.dumps(shapes), cases=json.dumps(CASES[name]), seed=str(seed))
        save_file(tensors, FIXTURES / f"pipeline_{name}.safetensors", metadata=texts)


if __name__ == "__main__":
    main()
