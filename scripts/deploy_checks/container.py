"""Dockerfile.cuda without a container engine."""

import fnmatch
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from tree import ROOT, complaints, read, tracked

DOCKERFILE = "Dockerfile.cuda"


def instructions():
    """The instructions as (name, rest), continued lines joined, ARGs with defaults filled in."""
    lines, current = [], ""
    for line in read(DOCKERFILE).splitlines():
        if line.lstrip().startswith("#") or not (line.strip() or current):
            continue
        current += line.rstrip("\\").strip() + " "
        if not line.endswith("\\"):
            lines.append(current.strip())
            current = ""
    arguments, found = {}, []
    for line in lines:
        name, rest = line.split(maxsplit=1)
        if name == "ARG" and "=" in rest:
            key, value = rest.split("=", 1)
            arguments[key] = value.strip('"')
        if name in ("FROM", "COPY"):
            rest = re.sub(r"\$\{(\w+)\}", lambda m: arguments.get(m[1], m[0]), rest)
        found.append((name, rest))
    return found


def stages(found):
    """The names of the stages before the last, and the instructions of the last."""
    starts = [i for i, (name, _) in enumerate(found) if name == "FROM"]
    names = {rest.split(" AS ")[1] for name, rest in found if name == "FROM" and " AS " in rest}
    return names, found[starts[-1]:]


def dockerfile():
    yield from complaints(["hadolint", DOCKERFILE])
    found = instructions()
    names, last = stages(found)
    for name, rest in found:
        if name == "FROM":
            image = rest.split()[0]
            if "${" in image:
                yield f"FROM {image}: an ARG without a default"
            elif image not in names and not re.search(r"(:[^:@/]*\d[^:@/]*)?(@sha256:[0-9a-f]{64})?$", image)[0]:
                yield f"FROM {image}: no exact tag"
        if name == "COPY" and (stage := re.search(r"--from=(\S+)", rest)) and stage[1] not in names:
            yield f"COPY {rest}: there is no stage {stage[1]}"
        if name == "RUN" and "apt-get install" in rest:
            if "--no-install-recommends" not in rest or "rm -rf /var/lib/apt/lists" not in rest:
                yield f"RUN {rest}: without --no-install-recommends, or lists are left"
    order = [name for name, _ in last]
    for needed in ("USER", "HEALTHCHECK", "ENTRYPOINT", "VOLUME", "EXPOSE"):
        if needed not in order:
            yield f"the last stage has no {needed}"
    if dict(last).get("USER") != "1000" or order.index("USER") > order.index("ENTRYPOINT"):
        yield "the last stage does not change to user 1000 before its ENTRYPOINT"
    variables = dict(re.findall(r"(\w+)=(\S+)", " ".join(rest for name, rest in last if name == "ENV")))
    if variables.get("PORT") != dict(last).get("EXPOSE"):
        yield f"PORT is {variables.get('PORT')}, but EXPOSE {dict(last).get('EXPOSE')}"
    yield from started(last)


def started(last):
    """The ENTRYPOINT is a file that the last stage copies and makes executable; health checks go through it."""
    program = json.loads(dict(last)["ENTRYPOINT"])[0]
    copied = [rest for name, rest in last if name == "COPY" and rest.endswith(f"/usr/local/bin/{program}")]
    if not copied or "--chmod=755" not in copied[0]:
        yield f"ENTRYPOINT {program}: no COPY --chmod=755 to /usr/local/bin/{program}"
    check = json.loads(dict(last)["HEALTHCHECK"].split("CMD ", 1)[1])
    if check[0] != program:
        yield f"HEALTHCHECK runs {check[0]}, which is not in the image"
    for arguments in (check[1:], json.loads(dict(last)["CMD"])):
        if f"\n## `aquatint {arguments[0]}`\n" not in read("docs/configuration.md"):
            yield f"there is no command `aquatint {arguments[0]}`"


def ignored(path):
    """Whether .dockerignore keeps a file out of the build: the last line that matches decides."""
    verdict = False
    for line in read(".dockerignore").splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        kept = pattern.startswith("!")
        pattern = pattern.lstrip("!")
        parents = [path, *map(str, Path(path).parents)]
        names = [pattern, pattern.removeprefix("**/")] if pattern.startswith("**/") else [pattern]
        if any(fnmatch.fnmatchcase(parent, name) for parent in parents for name in names if parent != "."):
            verdict = not kept
    return verdict


def staged(folder):
    """Makes the tree that the build stage gets; yields what COPY could not find."""
    files = [path for path in tracked(".") if not ignored(path)]
    names, last = stages(instructions())
    for name, rest in instructions():
        if name != "COPY" or "--from=" in rest:
            continue
        *sources, target = [word for word in rest.split() if not word.startswith("--")]
        for source in sources:
            of_source = [path for path in files if path == source or path.startswith(f"{source}/")]
            if not of_source:
                yield f"COPY {source}: not in the tree, or kept out by .dockerignore"
            if ("COPY", rest) in last:
                continue
            for path in of_source:
                to = folder / path
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / path, to)


def context():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        yield from staged(folder)
        metadata = ["cargo", "metadata", "--format-version=1", "--no-deps", "--offline", "--locked"]
        done = subprocess.run(metadata, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            yield from done.stderr.splitlines()
            return
        root = next(p for p in json.loads(done.stdout)["packages"] if p["name"] == "aquatint")
        yield from build_commands(root)
        yield from embedded(folder)


def build_commands(root):
    """Each `cargo build` of the Dockerfile, against the manifest: its flags, its binary, its features."""
    known = subprocess.run(["cargo", "build", "--help"], capture_output=True, text=True).stdout
    arguments = {rest.split("=")[0]: rest.split("=", 1)[1].strip('"') for name, rest in instructions()
                 if name == "ARG" and "=" in rest}
    for name, rest in instructions():
        for command in re.findall(r"cargo build[^;&|]*", rest) if name == "RUN" else []:
            command = re.sub(r"\$\{(\w+)\}", lambda m: arguments.get(m[1], m[0]), command)
            words = command.replace('"', "").split()
            for flag in (word for word in words if word.startswith("--")):
                if f"{flag} " not in known and f"{flag}\n" not in known and f"{flag}[" not in known:
                    yield f"{command}: cargo build knows no {flag}"
            binary = words[words.index("--bin") + 1]
            if not any(t["name"] == binary and "bin" in t["kind"] for t in root["targets"]):
                yield f"{command}: there is no binary {binary}"
            for feature in words[words.index("--features") + 1].split(","):
                if feature not in root["features"]:
                    yield f"{command}: there is no feature {feature}"
    if not re.fullmatch(r"(75|80|90)( (75|80|90))*", arguments["CAPS"]):
        yield f"CAPS={arguments['CAPS']}"


def embedded(folder):
    """Files that the sources take in when they are compiled are in the staged tree."""
    for source in folder.rglob("*.rs"):
        for path in re.findall(r'include(?:_str|_bytes)?!\(\s*"([^"]+)"\s*\)', source.read_text()):
            if not (source.parent / path).is_file():
                yield f"{source.relative_to(folder)} takes in {path}, which the image's tree lacks"


def build():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        yield from staged(folder)
        target = os.environ.get("CARGO_TARGET_DIR", ROOT / "target")
        command = ["cargo", "check", "--locked", "--bin", "aquatint", "--target-dir", target]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            yield from done.stderr.splitlines()[-20:]
