"""Records whole pictures with steps that reuse features:  .ref/bin/python models/tests/reference/step_cache.py

FLUX with diffusers' first-block cache, Stable Diffusion with the package DeepCache, on the tiny
models of pipeline_flux.py and pipeline.py. Beside each picture: how often its last block was run.
"""
import json

import numpy as np
import torch
from DeepCache import DeepCacheSDHelper
from diffusers import FirstBlockCacheConfig, FluxPipeline
from safetensors.torch import save_file

import pipeline
import pipeline_flux
from pipeline_parts import FIXTURES

A, B = pipeline.A, pipeline.B
# What a request leaves out is as in the scripts of the models.
# A tiny random transformer changes more between two steps than FLUX does: its thresholds are higher.
FLUX = {
    "flux_dev.few": dict(prompt=A, num_inference_steps=12, threshold=0.5),
    "flux_dev.many": dict(prompt=A, num_inference_steps=28, threshold=0.6),
    "flux_dev.true_cfg": dict(prompt=A, negative_prompt=B, true_cfg_scale=4.0, num_inference_steps=12, threshold=0.65),
}
DEEP = {
    "sd15.finest": dict(prompt=A, negative_prompt=B, num_inference_steps=20, interval=3, branch=0),
    "sd15.next": dict(prompt=A, num_inference_steps=10, interval=2, branch=1),
    "sd15.block": dict(prompt=A, num_inference_steps=10, interval=5, branch=3),
    "sd15.deepest": dict(prompt=A, num_inference_steps=10, interval=4, branch=5),
    "sd15.no_guidance": dict(prompt=A, num_inference_steps=10, guidance_scale=1.0, interval=2, branch=4),
    "sd15.odd_size": dict(prompt=A, height=40, width=72, num_inference_steps=10, interval=3, branch=1),
    # A timestep that comes twice has the place of the first.
    "sd15.heun": dict(prompt=A, num_inference_steps=8, scheduler="HeunDiscreteScheduler", interval=2, branch=0),
    "sd15.img2img": dict(prompt=A, mode="img2img", strength=0.6, num_inference_steps=10, interval=2, branch=0),
    "sdxl.finest": dict(prompt=A, negative_prompt=B, num_inference_steps=12, interval=3, branch=0),
    "sdxl.block": dict(prompt=A, num_inference_steps=12, interval=2, branch=3),
}  # fmt: skip


class Runs:
    """Counts the runs of a module: its parts are replaced by what caches, and it is not."""

    def __init__(self, module):
        self.count = 0
        self.handle = module.register_forward_hook(self.add)

    def add(self, *_):
        self.count += 1


def flux(name, case):
    threshold = case.pop("threshold")
    parts = pipeline_flux.components(name)
    last = Runs(parts["transformer"].single_transformer_blocks[-1].proj_out)
    parts["transformer"].enable_cache(FirstBlockCacheConfig(threshold=threshold))
    pipe = FluxPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    case = dict(height=64, width=64, guidance_scale=3.5) | case
    return np.asarray(pipe(**case, generator=torch.Generator().manual_seed(7)).images[0]), last.count


def deep(name, case):
    interval, branch = case.pop("interval"), case.pop("branch")
    parts = pipeline.components(name, 0)
    last = Runs(parts["unet"].mid_block.resnets[0].conv1)
    helpers = []

    def with_cache(pipe):
        # Of its wrapped modules it asks what only cross-attention blocks have.
        for block in [*pipe.unet.down_blocks, *pipe.unet.up_blocks]:
            block.attentions = getattr(block, "attentions", [])
        helper = DeepCacheSDHelper(pipe=pipe)
        helper.set_params(cache_interval=interval, cache_branch_id=branch)
        helper.enable()
        helpers.append(helper)

    return pipeline.run(name, parts, case, prepare=with_cache), last.count


@torch.no_grad()
def main():
    tensors, runs = {}, {}
    for cases, record in ((FLUX, flux), (DEEP, deep)):
        for key, case in cases.items():
            pixels, runs[key] = record(key.split(".")[0], dict(case))
            print(key, pixels.shape, f"std {pixels.std():.1f}, the deepest block was run {runs[key]} times")
            tensors[key] = torch.from_numpy(pixels.copy())
    texts = dict(cases=json.dumps(FLUX | DEEP), runs=json.dumps(runs))
    save_file(tensors, FIXTURES / "step_cache.safetensors", metadata=texts)


main()
