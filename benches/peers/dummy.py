"""Models of published shapes with the weights of `--dummy-weights`, computed where they are to be used.

The formula is that of models/src/checkpoint/synthetic.rs: splitmix64 of a tensor's name. `python dummy.py` compares it
with models/tests/reference/synthetic.py.
"""
import json
import pathlib
import sys
from unittest import mock

import torch

MODELS = pathlib.Path(__file__).resolve().parents[2] / "models"
sys.path.append(str(MODELS / "tests/reference"))
import synthetic  # noqa: E402

# Elements at a time: 8 bytes each, some times over.
CHUNK = 1 << 26


def signed(value):
    """A 64-bit word as torch's int64 holds it."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def shifted(z, bits):
    """int64's shift copies the sign; a word's does not."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def values(name, shape, dtype, device):
    scale, offset = synthetic.scale_and_offset(name, shape)
    count, start = torch.Size(shape).numel(), signed(synthetic.fnv1a(name))
    out = torch.empty(count, dtype=dtype, device=device)
    for first in range(0, count, CHUNK):
        last = min(first + CHUNK, count)
        z = torch.arange(first + 1, last + 1, dtype=torch.int64, device=device)
        z = z * signed(synthetic.GOLDEN) + start
        z = (z ^ shifted(z, 30)) * signed(0xBF58476D1CE4E5B9)
        z = (z ^ shifted(z, 27)) * signed(0x94D049BB133111EB)
        u = shifted(z ^ shifted(z, 31), 40).float() / (1 << 23) - 1
        out[first:last] = (u * float(scale) + float(offset)).to(dtype)
    return out.reshape(shape)


def config(model, part):
    """`model` is a name of --dummy-weights, `part` a component of it."""
    family, _, variant = model.partition("-")
    of = f"{part}_{variant}" if variant and part in ("transformer", "scheduler", "unet") else part
    return json.loads((MODELS / "published" / family / f"{of}.json").read_text())


INITIALISERS = ("kaiming_uniform_", "uniform_", "normal_", "xavier_uniform_", "trunc_normal_", "ones_", "zeros_")


def build(make, dtype, device):
    """The module that `make` gives. Its own random weights, which take minutes at full size, are never made."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    same = {name: (lambda tensor, *_, **__: tensor) for name in INITIALISERS}
    try:
        with mock.patch.multiple(torch.nn.init, **same), torch.device(device):
            module = make()
    finally:
        torch.set_default_dtype(before)
    state = {}
    for name, like in module.state_dict().items():
        if like.is_floating_point():
            # T5's embedding table has two names; files have the first.
            stored = name.replace("encoder.embed_tokens", "shared")
            state[name] = values(stored, tuple(like.shape), dtype, device)
    module.load_state_dict(state, strict=False)
    return module.to(device, dtype).eval()


def self_test():
    import numpy as np

    for name, shape in [("conv_in.weight", (32, 4, 3, 3)), ("a.norm.bias", (7,)), ("x.to_q.weight", (40, 24))]:
        ours = values(name, shape, torch.float32, "cpu").numpy()
        assert np.array_equal(ours, synthetic.tensor(name, shape)), name


if __name__ == "__main__":
    self_test()
    print("the same values as synthetic.py")
