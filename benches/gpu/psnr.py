"""The peak signal-to-noise ratio of two pictures in dB; ends with 1 where it is below LEAST: psnr.py A B LEAST"""
import sys

import numpy as np
from PIL import Image

a, b = (np.asarray(Image.open(path).convert("RGB"), dtype=float) for path in sys.argv[1:3])
error = np.mean((a - b) ** 2)
ratio = 10 * np.log10(255**2 / error) if error else 99.0
print(f"{ratio:.1f}")
sys.exit(ratio < float(sys.argv[3]))
