"""Records diffusers' schedulers, run with a stand-in for the denoiser, for tests/parity/sampler.rs.

    .ref/bin/python models/tests/reference/sampler.py
"""
import inspect
import json
import warnings
from itertools import product
from pathlib import Path

import diffusers
import torch
from safetensors.torch import save_file

warnings.simplefilter("ignore")
diffusers.logging.set_verbosity_error()
FIXTURES = Path(__file__).parents[1] / "fixtures"
SHAPE = (1, 4, 3, 5)
PATTERN = ((torch.arange(60) * 37 % 61 - 30) / 60).reshape(SHAPE).float()

# What Stable Diffusion's configs say of the model.
MODEL = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
SPACINGS = [{"timestep_spacing": s} for s in ("leading", "trailing", "linspace")]
PREDICTIONS = [{"prediction_type": p} for p in ("epsilon", "v_prediction", "sample")]
KINDS = [{}, *({f"use_{kind}_sigmas": True} for kind in ("karras", "exponential", "beta"))]
ZERO_SNR = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}


def triangle(u):
    """A wave between 0 and 1."""
    return abs(u % 2 - 1)


def denoiser(x, t):
    """Anything that is far from linear in all it is given, so that the way there shows in the result; in operations
    that round alike everywhere."""
    u = float(t) / 1000
    return (0.6 + 0.6 * triangle(5 * u)) * (x / (1 + x.abs())) + (1.5 * triangle(7 * u) - 0.6) * PATTERN


def run(config, steps, begin=0, eta=0.0):
    """One run: timesteps, sigmas, the denoised sample of the second evaluation, and the last sample."""
    scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
    scheduler.set_timesteps(steps)
    generator = torch.Generator("cpu").manual_seed(steps)
    noise = torch.randn(SHAPE, generator=generator)
    accepted = inspect.signature(scheduler.step).parameters
    extra = {k: v for k, v in {"generator": generator, "eta": eta}.items() if k in accepted}
    if hasattr(scheduler, "set_begin_index"):
        # Also for 0: where the first two timesteps are equal, a scheduler left alone would begin at the second and
        # run out of sigmas.
        scheduler.set_begin_index(begin)
    if begin:
        sample = scheduler.add_noise(3 * PATTERN, noise, scheduler.timesteps[begin : begin + 1])
    else:
        sample = noise * scheduler.init_noise_sigma
    denoised = None
    for i, t in enumerate(scheduler.timesteps[begin:]):
        output = denoiser(scheduler.scale_model_input(sample, t), t)
        result = scheduler.step(output, t, sample, **extra)
        sample = result.prev_sample
        if i == 1:
            denoised = result.get("pred_original_sample", result.get("denoised"))
    assert sample.isfinite().all(), (config, steps)
    sigmas = getattr(scheduler, "sigmas", torch.zeros(0))
    return scheduler.timesteps.float(), sigmas.float(), denoised, sample


def combine(*lists):
    return [{k: v for part in parts for k, v in part.items()} for parts in product(*lists)]


def record(file, class_name, configs, extras=()):
    """`configs` run with 4 and 20 steps; `extras` are (config, steps, begin, eta)."""
    cases, tensors = [], {"timesteps": [], "sigmas": [], "denoised": [], "samples": []}
    runs = [(c, n, 0, 0.0) for c in configs for n in (4, 20)] + list(extras)
    for config, steps, begin, eta in runs:
        config = {"_class_name": class_name, **config}
        timesteps, sigmas, denoised, sample = run(config, steps, begin, eta)
        counts = {"timesteps": len(timesteps), "sigmas": len(sigmas), "denoised": denoised is not None}
        cases.append({"config": config, "steps": steps, "begin": begin, "eta": eta, **counts})
        tensors["timesteps"].append(timesteps)
        tensors["sigmas"].append(sigmas)
        tensors["denoised"].append(torch.zeros(0) if denoised is None else denoised.flatten())
        tensors["samples"].append(sample.flatten())
    path = FIXTURES / f"sampler_{file}.safetensors"
    save_file({k: torch.cat(v) for k, v in tensors.items()}, path, {"cases": json.dumps(cases)})
    print(f"{path.name}: {len(cases)} cases, {path.stat().st_size} bytes")


def with_sigmas(file, class_name, *, zero_snr, also=[{}], begin=8, configs=(), extras=()):
    """Every spacing, prediction and kind of sigmas; image-to-image starts; what only some have."""
    every = combine([MODEL], also, SPACINGS, PREDICTIONS, KINDS)
    zero = combine([{**MODEL, **ZERO_SNR}], also, SPACINGS, KINDS[:2]) if zero_snr else []
    started = [(c, 20, b, 0.0) for c in combine([MODEL], also, SPACINGS, KINDS[:2]) for b in (2, begin)]
    record(file, class_name, [*every, *zero, *also, *configs], [*started, *extras])


SIGMA_MIN = {"final_sigmas_type": "sigma_min"}
COSINE = {"beta_schedule": "squaredcos_cap_v2"}
SDE = {"algorithm_type": "sde-dpmsolver++"}
ORDERS = [{"solver_order": n} for n in (1, 2, 3)]
MIDPOINT_HEUN = [{"solver_type": s} for s in ("midpoint", "heun")]
RANGE = {"use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 10.0}

with_sigmas("euler", "EulerDiscreteScheduler", zero_snr=True, configs=[{**MODEL, **SIGMA_MIN}, COSINE, {**MODEL, **RANGE}])
with_sigmas("heun", "HeunDiscreteScheduler", zero_snr=False, configs=[{**MODEL, "clip_sample": True}])
with_sigmas("lms", "LMSDiscreteScheduler", zero_snr=False)
with_sigmas("dpm_multistep", "DPMSolverMultistepScheduler", zero_snr=True)
with_sigmas("dpm_multistep_sde", "DPMSolverMultistepScheduler", zero_snr=True, also=[SDE])
with_sigmas("unipc", "UniPCMultistepScheduler", zero_snr=True)

record(
    "dpm_multistep_variants",
    "DPMSolverMultistepScheduler",
    [
        *combine([MODEL], [{"algorithm_type": "dpmsolver++"}, SDE], ORDERS, MIDPOINT_HEUN),
        *combine([{**MODEL, **SIGMA_MIN}], [{"algorithm_type": "dpmsolver"}], ORDERS, MIDPOINT_HEUN, PREDICTIONS[:2]),
        *combine([{**MODEL, **SIGMA_MIN}], [{"algorithm_type": "sde-dpmsolver"}], ORDERS[:2], MIDPOINT_HEUN, PREDICTIONS),
        *combine([MODEL, {**MODEL, **SIGMA_MIN}], ORDERS[1:], [{"lower_order_final": False}, {"euler_at_final": True}]),
        *combine([{**COSINE, "lambda_min_clipped": -5.1}], SPACINGS, KINDS[:2]),
        {**MODEL, **RANGE},
        {**MODEL, **SIGMA_MIN, "use_karras_sigmas": True},
    ],
    [(c, n, 0, 0.0) for c in combine([MODEL], ORDERS) for n in (1, 2, 3, 14, 15, 16)],
)
single = "DPMSolverSinglestepScheduler"
record(
    "dpm_singlestep",
    single,
    [
        *combine([MODEL], [{}, SDE], PREDICTIONS, KINDS),
        *combine([MODEL], [{"algorithm_type": "dpmsolver++"}, SDE], ORDERS, MIDPOINT_HEUN),
        *combine([{**MODEL, **SIGMA_MIN}], [{"algorithm_type": "dpmsolver"}, SDE], ORDERS, MIDPOINT_HEUN, PREDICTIONS[:2]),
        *combine([{**MODEL, **SIGMA_MIN}], ORDERS, [{"lower_order_final": True}]),
        {**COSINE, "lambda_min_clipped": -5.1},
        {},
    ],
    [(c, n, b, 0.0) for c in combine([MODEL, {**MODEL, **SIGMA_MIN}], [{}, SDE], ORDERS) for n, b in [(5, 0), (6, 0), (20, 7), (20, 8)]],
)
record(
    "unipc_variants",
    "UniPCMultistepScheduler",
    [
        *combine([{**MODEL, **SIGMA_MIN}], ORDERS, [{"solver_type": "bh1"}, {"solver_type": "bh2"}], [{}, {"predict_x0": False}], PREDICTIONS),
        *combine([MODEL], ORDERS, [{}, {"disable_corrector": [0, 1]}, {"solver_type": "midpoint"}]),
        *combine([{**MODEL, **SIGMA_MIN}], ORDERS, [{"lower_order_final": False}]),
        COSINE,
    ],
)
record(
    "euler_ancestral",
    "EulerAncestralDiscreteScheduler",
    [
        *combine([MODEL], SPACINGS, PREDICTIONS[:2]),
        *combine([{**MODEL, **ZERO_SNR}], SPACINGS),
        {},
    ],
    [(c, 20, 8, 0.0) for c in combine([MODEL], SPACINGS)],
)
clips = [{"clip_sample": False}, {"clip_sample": True, "clip_sample_range": 1.5}]
tables = [
    *combine([MODEL], clips, SPACINGS, PREDICTIONS),
    *combine([{**MODEL, **ZERO_SNR}], clips, SPACINGS),
    COSINE,
    {},
]
unclipped = {**MODEL, "clip_sample": False}
record(
    "ddim",
    "DDIMScheduler",
    [*tables, *combine([unclipped], SPACINGS, [{"set_alpha_to_one": False}])],
    [(c, 20, b, eta) for c in combine([unclipped], SPACINGS, PREDICTIONS) for b, eta in [(8, 0.0), (0, 0.5), (8, 1.0)]],
)
record(
    "ddpm",
    "DDPMScheduler",
    [*tables, *combine([unclipped], SPACINGS, [{"variance_type": v} for v in ("fixed_small_log", "fixed_large")])],
    [(c, 20, 8, 0.0) for c in combine([unclipped], SPACINGS)],
)
record(
    "pndm",
    "PNDMScheduler",
    combine([MODEL, {**MODEL, "set_alpha_to_one": True}], SPACINGS, PREDICTIONS[:2], [{"skip_prk_steps": True}, {}]) + [{}],
    [(c, 20, b, 0.0) for c in combine([{**MODEL, "skip_prk_steps": True}, MODEL], SPACINGS) for b in (1, 2, 8)]
    + [({**MODEL, "skip_prk_steps": True}, n, 0, 0.0) for n in (1, 2, 3)],
)
distilled = [
    *combine([MODEL], PREDICTIONS),
    *combine([{**MODEL, **ZERO_SNR}]),
    {**MODEL, "original_inference_steps": 100},
    {},
]
record(
    "lcm",
    "LCMScheduler",
    [*distilled, *combine([MODEL], PREDICTIONS, [{"clip_sample": True}]), {**MODEL, "timestep_scaling": 0.1}],
    [(MODEL, n, b, 0.0) for n, b in [(1, 0), (7, 0), (4, 2), (20, 8), (50, 0)]],
)
record(
    "tcd",
    "TCDScheduler",
    distilled,
    [(c, n, b, eta) for c in combine([MODEL], PREDICTIONS) for eta in (0.0, 0.3, 1.0) for n, b in [(1, 0), (4, 0), (20, 8)]],
)
