"""Records FlowMatchEulerDiscreteScheduler as FLUX's pipelines call it:  .ref/bin/python models/tests/reference/flow_match.py"""
import json
import pathlib

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from safetensors.torch import save_file

FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures"

DYNAMIC = dict(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=4096, shift=3.0)
CONFIGS = {
    "schnell": dict(num_train_timesteps=1000, shift=1.0),
    "shifted": dict(num_train_timesteps=1000, shift=3.0),
    "dev": dict(num_train_timesteps=1000, **DYNAMIC),
    "linear": dict(**DYNAMIC, time_shift_type="linear"),
    "terminal": dict(**DYNAMIC, shift_terminal=0.1),
    "karras": dict(**DYNAMIC, use_karras_sigmas=True),
    "exponential": dict(**DYNAMIC, use_exponential_sigmas=True),
    "beta": dict(**DYNAMIC, use_beta_sigmas=True),
    "few_trained": dict(num_train_timesteps=500, shift=1.5),
}
STEPS = [1, 2, 3, 4, 8, 20, 28, 50]
TOKENS = [16, 256, 1024, 4096, 9216]
SHAPE = (1, 4, 6, 5)

tensors = {}
for name, config in CONFIGS.items():
    for steps in STEPS:
        for tokens in TOKENS:
            scheduler = FlowMatchEulerDiscreteScheduler(**config)
            of = scheduler.config
            mu = calculate_shift(tokens, of.base_image_seq_len, of.max_image_seq_len, of.base_shift, of.max_shift)
            sigmas = np.linspace(1.0, 1 / steps, steps)
            try:
                scheduler.set_timesteps(sigmas=sigmas, mu=mu)
            except Exception as error:
                print(name, steps, error)
                continue
            if not torch.isfinite(scheduler.sigmas).all():
                # One step stretched to a terminal sigma divides by zero.
                continue
            tensors[f"{name}/{steps}/{tokens}"] = torch.stack([scheduler.timesteps, scheduler.sigmas[:-1]])

# A run: the model's output at step i is cos(2 x) + i / 10, so that it depends on where the sample is.
scheduler = FlowMatchEulerDiscreteScheduler(**CONFIGS["dev"])
scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.2, 5), mu=0.7)
sample = torch.linspace(-2, 2, 120).reshape(SHAPE)
original = torch.linspace(1, -1, 120).reshape(SHAPE).sin()
scheduler.set_begin_index(1)
run = [scheduler.scale_noise(original, scheduler.timesteps[1:2], sample)]
for i, t in enumerate(scheduler.timesteps[1:]):
    run.append(scheduler.step((2 * run[-1]).cos() + i / 10, t, run[-1]).prev_sample)
tensors["run"] = torch.cat(run)

text = {"configs": json.dumps({k: v | {"_class_name": "FlowMatchEulerDiscreteScheduler"} for k, v in CONFIGS.items()})}
save_file({k: v.contiguous() for k, v in tensors.items()}, FIXTURES / "flow_match.safetensors", text)
print(len(tensors), "recorded")
