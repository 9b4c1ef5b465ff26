"""How far two outputs of component.rs or component.py are from each other: compare.py OURS EXPECTED

Prints JSON: the root of the mean squared difference and the largest one, both as parts of the expected root mean square.
"""
import json
import sys

import numpy as np

ours, expected = (np.fromfile(path, dtype=np.float32).astype(np.float64) for path in sys.argv[1:3])
if ours.shape != expected.shape:
    sys.exit(f"{ours.size} values, {expected.size} are expected")
rms = np.sqrt(np.mean(expected**2))
difference = np.abs(ours - expected)
print(json.dumps(dict(relative=np.sqrt(np.mean(difference**2)) / rms, largest=difference.max() / rms)))
