"""The shapes of benches/kernels.rs in eager PyTorch, f32 on two threads: reads their names, one a line, from standard
input, and prints `name nanoseconds` (the smallest of many runs) for each that has a counterpart. With
AQUATINT_DEVICE=cuda in f16 on the first GPU, features channels-last.

    .ref/bin/python benches/peers/ops.py < names
"""
import os
import re
import sys
import time

import torch
import torch.nn.functional as F

torch.set_num_threads(2)
DEVICE = os.environ.get("AQUATINT_DEVICE", "cpu")
torch.set_default_device(DEVICE)
if DEVICE == "cuda":
    torch.set_default_dtype(torch.float16)


def image(*shape):
    x = torch.randn(*shape)
    return x.to(memory_format=torch.channels_last) if DEVICE == "cuda" else x


def op(name):
    """What eager diffusers calls for this shape; its features are channels-first."""
    n = [int(i) for i in re.findall(r"\d+", name)]
    if name.startswith("linear") and "f16" not in name:
        x, w, b = torch.randn(n[0], n[1]), torch.randn(n[2], n[1]), torch.randn(n[2])
        return lambda: F.linear(x, w, b)
    if name.startswith("conv"):
        batch, size, _, c, to = n[:5]
        stride = int(name[-1])
        x, w, b = image(batch, c, size, size), image(to, c, 3, 3), torch.randn(to)
        return lambda: F.conv2d(x, w, b, stride, 1)
    if name.startswith("attention"):
        batch, heads, d, queries, keys = n[:5]
        # As AttnProcessor2_0 makes them: views of (batch, tokens, channels).
        split = lambda tokens: torch.randn(batch, tokens, heads * d).view(batch, tokens, heads, d).transpose(1, 2)
        q, k, v, causal = split(queries), split(keys), split(keys), "causal" in name
        return lambda: F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).reshape(batch, queries, -1)
    if name.startswith("group_norm"):
        batch, size, _, c = n[:4]
        x, w, b = image(batch, c, size, size), torch.randn(c), torch.randn(c)
        return lambda: F.silu(F.group_norm(x, 32, w, b, 1e-5))
    if name.startswith("layer_norm"):
        x, w, b = torch.randn(n[0], n[1]), torch.randn(n[1]), torch.randn(n[1])
        return lambda: F.layer_norm(x, (n[1],), w, b)
    if name.startswith("geglu"):
        x = torch.randn(n[0], 2 * n[1])

        def geglu():
            a, gate = x.chunk(2, dim=-1)
            return a * F.gelu(gate)

        return geglu
    if name.startswith("upsample"):
        x = image(1, n[2], n[0], n[1])
        return lambda: F.interpolate(x, scale_factor=2.0, mode="nearest")
    if name.startswith("weighted_sum"):
        a, b = torch.randn(n[1]), torch.randn(n[1])
        return lambda: 1.5 * a - 0.5 * b
    if name.startswith("modulated_layer_norm"):
        x, scale, shift = torch.randn(1, n[0], n[1]), torch.randn(1, 1, n[1]), torch.randn(1, 1, n[1])
        return lambda: F.layer_norm(x, (n[1],), eps=1e-6) * (1 + scale) + shift
    if name.startswith("gated_residual"):
        x, y, gate = torch.randn(1, n[0], n[1]), torch.randn(1, n[0], n[1]), torch.randn(1, 1, n[1])
        return lambda: x + gate * y
    if name.startswith("gated_gelu"):
        x, y = torch.randn(n[0], n[1]), torch.randn(n[0], n[1])
        return lambda: F.gelu(x, approximate="tanh") * y
    if name.startswith("rms_norm_") and "rope" not in name:
        x, w = torch.randn(n[0], n[1]), torch.randn(n[1])
        return lambda: F.rms_norm(x, (n[1],), w, 1e-6)
    if name.startswith("silu"):
        x = image(1, n[2], n[0], n[1])
        return lambda: F.silu(x)


def waited(run):
    run()
    if DEVICE == "cuda":
        torch.cuda.synchronize()


@torch.no_grad()
def main():
    for name in sys.stdin.read().split():
        run = op(name)
        if run is None:
            continue
        times, end = [], time.perf_counter() + 0.3
        waited(run)
        while len(times) < 10 or time.perf_counter() < end:
            start = time.perf_counter_ns()
            waited(run)
            times.append(time.perf_counter_ns() - start)
        print(name, min(times), flush=True)


main()
