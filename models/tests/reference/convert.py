"""Records what the gguf package makes of a matrix in each format it can write:  .ref/bin/python models/tests/reference/convert.py"""
import pathlib

import numpy as np
import torch
from gguf import GGMLQuantizationType, quants
from safetensors.torch import save_file

import synthetic

FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures"
NAME = "double_blocks.0.img_mlp.0.weight"

values = synthetic.tensor(NAME, (16, 256)).astype(np.float32)
out = {}
for name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"):
    out[name] = torch.from_numpy(quants.quantize(values, GGMLQuantizationType[name]).copy())
# Eight-bit floats as torch rounds them, each row by its own scale.
scale = np.abs(values).max(axis=1) / np.float32(448)
rounded = torch.from_numpy(values / scale[:, None]).to(torch.float8_e4m3fn)
out["F8_E4M3"], out["scales"] = rounded.view(torch.uint8), torch.from_numpy(scale)
save_file(out, FIXTURES / "convert.safetensors")
print({k: tuple(v.shape) for k, v in out.items()})
