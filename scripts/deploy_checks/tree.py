"""The tree, and running tools over it."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def read(path):
    return (ROOT / path).read_text()


def tracked(*folders):
    """Files that git knows or would add, as paths from the root."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *folders]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    return [path for path in listed if (ROOT / path).is_file()]


def complaints(command, may_speak=True, **options):
    """What a tool says where it ends with anything but 0, or at all; a tool that is not there is a complaint of its own."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)
    except FileNotFoundError:
        return [f"there is no {command[0]}"]
    if done.returncode == 0 and may_speak:
        return []
    said = (done.stdout + done.stderr).strip().splitlines()
    if not said and done.returncode:
        return [f"{' '.join(map(str, command))} ended with {done.returncode}"]
    return said
