"""deploy/entrypoint.sh with a stand-in for nvidia-smi, and builds that print their own name."""

import os
import subprocess
import tempfile
from pathlib import Path

from tree import ROOT

# What nvidia-smi says, the builds in the image, and the build that is to be started; `said` is part of the log.
ALL = ("75", "80", "90")
CASES = [
    ("7.5", ALL, "75", ""),
    ("8.0", ALL, "80", ""),
    ("8.6", ALL, "80", ""),
    ("8.9", ALL, "80", ""),
    ("9.0", ALL, "90", ""),
    ("9.0\n9.0", ALL, "90", ""),
    ("10.0", ALL, "80", "compute capability 10.0 has no build of its own: using the one for 80"),
    ("12.0", ALL, "80", "using the one for 80"),
    ("9.0", ("75", "80"), "80", "using the one for 80"),
    ("8.6", ("75",), "75", "using the one for 75"),
    ("7.0", ALL, "80 on cpu", "no build runs on compute capability 7.0"),
    ("7.5", ("80",), "80 on cpu", "no build runs on compute capability 7.5"),
    ("8.6", ("90",), "90 on cpu", "no build runs on"),
    ("", ALL, "80", "no NVIDIA GPU was found"),
    ("No devices were found", ALL, "80", "no NVIDIA GPU was found"),
    (None, ALL, "80", "no NVIDIA GPU was found"),
    ("9.0", (), None, "there is no build"),
]


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def start(folder, says, builds, arguments=("serve", "--port", "80"), **variables):
    """Runs the script; `says` of None is a machine without nvidia-smi."""
    for cap in builds:
        executable(folder / "builds" / cap / "aquatint", f'#!/bin/sh\necho "{cap}${{SD_DEVICE:+ on $SD_DEVICE}}: $*"\n')
    (folder / "builds").mkdir(exist_ok=True)
    if says is not None:
        asked = folder / "asked"
        # The driver's tool ends with 6 or 9 where there is no device.
        ends = 0 if says[:1].isdigit() else 6
        executable(folder / "bin/nvidia-smi", f'#!/bin/sh\necho "$*" >"{asked}"\nprintf "%s\\n" "{says}"\nexit {ends}\n')
    environment = {"PATH": f"{folder}/bin:{os.defpath}", "AQUATINT_BUILDS": f"{folder}/builds", **variables}
    command = ["sh", str(ROOT / "deploy/entrypoint.sh"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def choices():
    for says, builds, expected, said in CASES:
        with tempfile.TemporaryDirectory() as name:
            done = start(Path(name), says, builds)
        wanted = "" if expected is None else f"{expected}: serve --port 80\n"
        if done.stdout != wanted or said not in done.stderr or bool(said) != bool(done.stderr):
            yield f"nvidia-smi {says!r}, builds {builds}: {done.stdout!r} {done.stderr!r}, expected {wanted!r} {said!r}"
        if (done.returncode != 0) != (expected is None):
            yield f"nvidia-smi {says!r}, builds {builds}: ended with {done.returncode}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        done = start(folder, "9.0", ALL, AQUATINT_BUILD="75")
        if done.stdout != "75: serve --port 80\n":
            yield f"AQUATINT_BUILD=75: {done.stdout!r}"
        done = start(folder, "9.0", ALL, arguments=("health",))
        if done.stdout != "80: health\n" or (folder / "asked").exists():
            yield f"health asks for the GPU: {done.stdout!r}"
        start(folder, "9.0", ALL, CUDA_VISIBLE_DEVICES="2,3")
        if "--id=2 " not in (folder / "asked").read_text():
            yield "CUDA_VISIBLE_DEVICES=2,3: the GPU that is asked about is not the one that is used"
