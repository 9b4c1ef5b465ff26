"""Records whole pictures of diffusers' FLUX pipelines on tiny models:  .ref/bin/python models/tests/reference/pipeline_flux.py

As pipeline.py: weights are synthetic, the fixture holds configs, names and shapes of all tensors, requests and pictures.
"""
import json
import sys

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxFillPipeline,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
)
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel, T5TokenizerFast

import synthetic
from pipeline_parts import FIXTURES, picture, text, tokenizer

T5_TOKENIZER = FIXTURES / "t5_tokenizer"
VAE = dict(
    in_channels=3, out_channels=3, latent_channels=16, sample_size=64, norm_num_groups=8, block_out_channels=[16, 32, 32, 32],
    layers_per_block=1, down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
    scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False,
)  # fmt: skip
TRANSFORMER = dict(
    patch_size=1, in_channels=64, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
    joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=[4, 6, 6],
)  # fmt: skip
DYNAMIC = dict(
    _class_name="FlowMatchEulerDiscreteScheduler", num_train_timesteps=1000, shift=3.0, use_dynamic_shifting=True,
    base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=4096,
)  # fmt: skip


def t5():
    return dict(
        vocab_size=len(T5TokenizerFast.from_pretrained(T5_TOKENIZER)), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
        relative_attention_num_buckets=32, relative_attention_max_distance=128, feed_forward_proj="gated-gelu",
        layer_norm_epsilon=1e-6, is_encoder_decoder=False, tie_word_embeddings=False,
    )  # fmt: skip


def model(pipeline, scheduler, **transformer):
    return dict(
        model_index=dict(_class_name=pipeline), scheduler=scheduler, text_encoder=text("quick_gelu"), text_encoder_2=t5(),
        transformer=TRANSFORMER | transformer, vae=VAE,
    )  # fmt: skip


MODELS = {
    "flux_dev": model("FluxPipeline", DYNAMIC, guidance_embeds=True),
    "flux_schnell": model("FluxPipeline", dict(_class_name=DYNAMIC["_class_name"], num_train_timesteps=1000, shift=1.0), guidance_embeds=False),
    "flux_fill": model("FluxFillPipeline", DYNAMIC, guidance_embeds=True, in_channels=384, out_channels=64),
    "flux_kontext": model("FluxKontextPipeline", DYNAMIC, guidance_embeds=True),
}

# What a request leaves out is 64x64, 6 steps, guidance 3.5, seed 7, no negative prompt.
A, B = "a photo of a red cat", "blurry, low quality"
LONG = ", ".join(f"a {colour} {thing}" for colour in ("red", "blue", "green") for thing in ("cat", "dog", "house", "tree", "car", "boat", "hat", "sun"))
CASES = {
    "flux_dev": {
        "txt2img": dict(prompt=A, num_inference_steps=12),
        "wide": dict(prompt=A, height=48, width=80),
        "brackets": dict(prompt="a (red:1.4) cat, [blurry], ((house))"),
        "empty": dict(prompt=""),
        "long": dict(prompt=LONG),
        "long_cut": dict(prompt=LONG, max_sequence_length=32),
        "true_cfg": dict(prompt=A, negative_prompt=B, true_cfg_scale=4.0),
        "unused_negative": dict(prompt=A, negative_prompt=B),
        "karras": dict(prompt=A, scheduler="Euler Karras"),
        "exponential": dict(prompt=A, scheduler="Euler Exponential"),
        "beta": dict(prompt=A, scheduler="Euler Beta"),
        "img2img": dict(prompt=A, mode="img2img", strength=0.6, num_inference_steps=7, guidance_scale=7.0),
        "inpaint": dict(prompt=A, mode="inpaint", strength=0.8, guidance_scale=7.0),
        "inpaint_whole": dict(prompt=A, mode="inpaint", strength=1.0, guidance_scale=7.0),
    },
    "flux_schnell": {
        "txt2img": dict(prompt=A, num_inference_steps=4, guidance_scale=0.0, max_sequence_length=256),
        "img2img": dict(prompt=A, mode="img2img", strength=0.6, num_inference_steps=4, guidance_scale=0.0, max_sequence_length=256),
    },
    "flux_fill": {
        "inpaint": dict(prompt=A, mode="inpaint", strength=1.0, guidance_scale=30.0),
        "inpaint_part": dict(prompt=A, mode="inpaint", strength=0.7, guidance_scale=30.0),
    },
    "flux_kontext": {
        "txt2img": dict(prompt=A),
        "edit": dict(prompt=A, mode="img2img", strength=1.0, num_inference_steps=3),
    },
}
KINDS = {"Euler Karras": "use_karras_sigmas", "Euler Exponential": "use_exponential_sigmas", "Euler Beta": "use_beta_sigmas"}


def t5_encoder(config):
    """The embedding table has two names; files hold it as shared.weight."""
    encoder = synthetic.fill(T5EncoderModel(T5Config(**config)), 1)
    table = synthetic.tensor("shared.weight", tuple(encoder.shared.weight.shape), 1)
    encoder.shared.weight.data = encoder.encoder.embed_tokens.weight.data = torch.from_numpy(table)
    return encoder


def components(name):
    parts = MODELS[name]
    scheduler = {k: v for k, v in parts["scheduler"].items() if k != "_class_name"}
    return dict(
        transformer=synthetic.fill(FluxTransformer2DModel(**parts["transformer"])),
        vae=synthetic.fill(AutoencoderKL(**parts["vae"])),
        text_encoder=synthetic.fill(CLIPTextModel(CLIPTextConfig(**parts["text_encoder"]))),
        text_encoder_2=t5_encoder(parts["text_encoder_2"]),
        tokenizer=tokenizer("<|endoftext|>"),
        tokenizer_2=T5TokenizerFast.from_pretrained(T5_TOKENIZER),
        scheduler=FlowMatchEulerDiscreteScheduler(**scheduler),
    )


def run(name, parts, case):
    case = dict(height=64, width=64, num_inference_steps=6, guidance_scale=3.5) | case
    mode, scheduler = case.pop("mode", "txt2img"), case.pop("scheduler", None)
    if scheduler:
        config = {k: v for k, v in MODELS[name]["scheduler"].items() if k != "_class_name"}
        parts = parts | dict(scheduler=FlowMatchEulerDiscreteScheduler(**config, **{KINDS[scheduler]: True}))
    if mode != "txt2img":
        case["image"], mask = picture(case["height"], case["width"])
    if mode == "inpaint":
        case["mask_image"] = mask
    kind = dict(txt2img=FluxPipeline, img2img=FluxImg2ImgPipeline, inpaint=FluxInpaintPipeline)[mode]
    if name == "flux_fill":
        kind = FluxFillPipeline
    if name == "flux_kontext":
        kind = FluxKontextPipeline
        # Else the size asked for becomes one of a megapixel.
        case["max_area"] = case["height"] * case["width"]
        case.pop("strength", None)
    pipe = kind(**parts)
    pipe.set_progress_bar_config(disable=True)
    return np.asarray(pipe(**case, generator=torch.Generator().manual_seed(7)).images[0])


@torch.no_grad()
def main():
    for name in sys.argv[1:] or MODELS:
        parts = components(name)
        shapes = {
            c: {k: list(v.shape) for k, v in parts[c].state_dict().items() if v.is_floating_point() and k != "encoder.embed_tokens.weight"}
            for c in ("transformer", "vae", "text_encoder", "text_encoder_2")
        }
        tensors = {}
        for case, request in CASES[name].items():
            pixels = run(name, parts, dict(request))
            saturated = np.mean((pixels == 0) | (pixels == 255))
            print(name, case, pixels.shape, f"std {pixels.std():.1f}, saturated {saturated:.0%}")
            tensors[case] = torch.from_numpy(pixels.copy())
        texts = dict(model=json.dumps(MODELS[name]), shapes=json.dumps(shapes), cases=json.dumps(CASES[name]), seed="0")
        save_file(tensors, FIXTURES / f"pipeline_{name}.safetensors", metadata=texts)


if __name__ == "__main__":
    main()
