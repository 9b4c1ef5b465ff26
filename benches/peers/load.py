"""load.rs with diffusers: from_pretrained of a folder in f16 on two threads.

    .ref/bin/python benches/peers/load.py FOLDER

Prints JSON: `seconds` until from_pretrained returns, whose tensors are still maps of the files; `placed_seconds` until
every tensor lies in memory of its own; the bytes of all tensors and their sum as unsigned bytes.
"""
import json
import resource
import sys
import time

import numpy as np
import torch
from diffusers import DiffusionPipeline

torch.set_num_threads(2)
start = time.perf_counter()
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], torch_dtype=torch.float16, local_files_only=True)
seconds = time.perf_counter() - start
modules = [c for c in pipeline.components.values() if isinstance(c, torch.nn.Module)]
tensors = [t for m in modules for t in m.parameters()]
for t in tensors:
    t.data = t.data.clone()
placed_seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
flat = [t.detach().numpy().view(np.uint8).ravel() for t in tensors]
report = {
    "seconds": seconds,
    "placed_seconds": placed_seconds,
    "bytes": sum(len(t) for t in flat),
    "sum": sum(int(t.sum(dtype=np.uint64)) for t in flat),
    "peak_bytes": peak,
}
print(json.dumps(report))
