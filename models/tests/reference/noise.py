"""Records torch.randn for tests/parity/noise.rs.

    .ref/bin/python models/tests/reference/noise.py
"""
from pathlib import Path

import torch
from safetensors.torch import save_file

FIXTURE = Path(__file__).parents[1] / "fixtures/noise.safetensors"
SEEDS = [0, 1, 2, 42, 1337, 123456789, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**32 + 42, 2**63 - 25]
LENGTHS = [1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 100, 623, 624, 1023, 1024, 4096, 16384, 16387, 65536, 65541, 70000]
# Draws of one generator one after another: the scalar path keeps half a pair over longer draws.
SUCCESSIVE = [1, 3, 17, 1, 2, 64, 5, 100, 15, 16]


def positions(n):
    """Which values of a draw are kept: all of a short one, else both ends and a sieve between."""
    return sorted({*range(min(n, 40)), *range(max(n - 40, 0), n), *range(0, n, 997)})


tensors = {"seeds": torch.tensor(SEEDS), "lengths": torch.tensor(LENGTHS), "successive": torch.tensor(SUCCESSIVE)}
for seed in SEEDS:
    generator = lambda: torch.Generator("cpu").manual_seed(seed)
    for n in LENGTHS:
        tensors[f"{seed}.{n}"] = torch.randn(n, generator=generator())[positions(n)]
    one = generator()
    tensors[f"{seed}.successive"] = torch.cat([torch.randn(n, generator=one) for n in SUCCESSIVE])
tensors["latents"] = torch.randn((1, 4, 3, 5), generator=torch.Generator("cpu").manual_seed(7))

save_file(tensors, FIXTURE)
print(FIXTURE.stat().st_size, "bytes")
