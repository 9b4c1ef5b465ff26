"""Every variable and flag that deploy/ and docs/ name is one that the program has: docs/configuration.md, which a test
compares with the program."""

import json
import re
import subprocess
import sys

import yaml

import container
from tree import ROOT, read, tracked

# Variables of others, and of our scripts.
FOREIGN = {
    "AQUATINT_BUILD", "AQUATINT_BUILDS", "AQUATINT_LOG", "AQUATINT_BLESS", "CUDA_CACHE_PATH", "CUDA_DEVICE_ORDER",
    "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES", "POD_NAME", "RUNPOD_API_KEY", "RUNPOD_SECRET_",
    "RUNPOD_SECRET_aquatint_api_keys",
}
# Words of documents that look like variables of ours.
VARIABLE = re.compile(r"\b(?:SD|AQUATINT|RUNPOD|FLUX|REFINE|HF|HUGGINGFACEHUB)_[A-Z][A-Z_]*\b")
COMMAND = re.compile(r"\baquatint ((?:serve|generate|models|health|doctor|bench)\b[^`|#\n]*)")


def reference():
    """The variables, and the flags by command. Those of the introduction's table have no flag."""
    variables, flags, command = set(), {}, None
    introduction = read("docs/configuration.md").split("\n## `")[0]
    variables.update(re.findall(r"`((?:HF|HUGGING\w*)_\w+)`", introduction))
    for line in read("docs/configuration.md").splitlines():
        if found := re.match(r"## `aquatint ([a-z ]+)`", line):
            command = found[1]
            flags[command] = {"--help"}
        elif command and line.startswith("| ") and not line.startswith("| flag"):
            flag, variable = (cell.strip().strip("`") for cell in line.split(" | ")[:2])
            flags[command].add(flag.lstrip("| `").split(" ")[0].strip("`"))
            variables.add(variable)
    return variables - {""}, flags


def environments():
    """(where, variable) for whatever sets the program's environment."""
    for name, rest in container.stages(container.instructions())[1]:
        if name == "ENV":
            yield from (("Dockerfile.cuda", key) for key in re.findall(r"(\w+)=", rest))
    for path in tracked("deploy"):
        text = read(path)
        if path.endswith(".env"):
            yield from ((path, key) for key in re.findall(r"^(\w+)=", text, re.M))
        if path.endswith(".service"):
            for line in re.findall(r"^Environment=(.*)$", text, re.M):
                yield from ((path, pair.split("=")[0]) for pair in line.split())
        if path.startswith("deploy/runpod/") and path.endswith(".json"):
            yield from ((path, key) for key in json.loads(text).get("env", {}))
        if path.startswith("deploy/kubernetes/") and path.endswith(".yaml"):
            for document in yaml.safe_load_all(text):
                yield from ((path, key) for key in of_manifest(document))
    dry_run = [sys.executable, "deploy/inference-endpoint/create.py", "x", "--image", "i", "--repository", "r", "--dry-run"]
    done = subprocess.run(dry_run, cwd=ROOT, check=True, capture_output=True, text=True)
    yield from (("deploy/inference-endpoint", key) for key in json.loads(done.stdout)["env"])


def of_manifest(node):
    """Names under `env` and the literals of generated config maps."""
    if isinstance(node, dict):
        yield from (entry["name"] for entry in node.get("env", []) if isinstance(entry, dict))
        yield from (entry.split("=")[0] for entry in node.get("literals", []))
        for child in node.values():
            yield from of_manifest(child)
    if isinstance(node, list):
        for child in node:
            yield from of_manifest(child)


def commands():
    """(where, words) for each command line of the program."""
    for path in tracked("deploy", "docs", "Dockerfile.cuda", "README.md"):
        text = read(path).replace("\\\n", " ")
        if path.endswith(".md"):
            yield from ((path, found.split()) for found in COMMAND.findall(text))
        if path.endswith(".service"):
            yield from ((path, line.split()) for line in re.findall(r"^ExecStart=\S+ (.*)$", text, re.M))
        if path.startswith("deploy/kubernetes/") and path.endswith(".yaml"):
            for found in re.findall(r"args: \[(serve.*)\]", text):
                yield path, [word.strip(' "') for word in found.split(",")]


def names():
    variables, flags = reference()
    sources = "".join(read(path) for path in tracked("src"))
    yield from (f"docs/configuration.md: nothing reads {name}" for name in sorted(variables) if f'"{name}"' not in sources)
    known = variables | FOREIGN
    for path, name in environments():
        if name not in known:
            yield f"{path}: there is no variable {name}"
    for path in tracked("deploy", "docs"):
        if path.endswith((".md", ".sh", ".py", ".yaml", ".service")):
            for name in sorted(set(VARIABLE.findall(read(path))) - known - {"SPACE_HF_TOKEN"}):
                yield f"{path}: there is no variable {name}"
    for path, words in commands():
        command = " ".join(words[:2]) if " ".join(words[:2]) in flags else words[0]
        if command not in flags:
            yield f"{path}: there is no command `aquatint {command}`"
            continue
        for word in words:
            flag = word.split("=")[0]
            if re.match(r"--[a-z]", flag) and flag not in flags[command]:
                yield f"{path}: `aquatint {command}` has no {flag}"
