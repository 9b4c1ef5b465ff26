"""The rows of gpu.sh: one JSON object a line, and benches/RESULTS.md made of them.

    rows.py FILE add part=PART who=WHO work=WORK [value=X | json=JSON key=KEY] [unit=UNIT] [note=TEXT]
    rows.py FILE bench part=PART      reads a bench's output: lines `test NAME ... bench: N ns/iter`, or of a table
    rows.py FILE report

The work `part` is the part as a whole: value=SECONDS where it went well.
"""
import functools
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
UNMEASURED = HERE / "unmeasured.md"


def said(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return ""


@functools.cache
def where():
    device = os.environ.get("AQUATINT_GPU_NAME") or said("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    file = HERE.parents[1] / "target/gpu/bin/commit"
    commit = file.read_text().strip() if file.exists() else said("git", "rev-parse", "--short", "HEAD")
    return dict(device=device or "no GPU", commit=commit)


def add(path, row):
    with open(path, "a") as file:
        file.write(json.dumps(where() | row) + "\n")
    (HERE.parent / "RESULTS.md").write_text(report(path))


def row_of(fields):
    row = {k: v for k, v in fields.items() if k not in ("json", "key")}
    if "json" in fields:
        value = json.loads(fields["json"])[fields["key"]]
        # The first runs pay for pages, kernels and compiling.
        row["value"] = statistics.median(value[len(value) // 2 :]) if isinstance(value, list) else value
        row["first"] = value[0] if isinstance(value, list) else None
    elif "value" in row:
        row["value"] = float(row["value"])
    return row


def bench(path, part):
    """Ends with 1 where nothing was timed; the last line is then the bench's own."""
    rows = 0
    for line in sys.stdin:
        print(line, end="", flush=True)
        if found := re.match(r"test (?:kernels/)?(.*?) \.\.\. bench:\s+([\d,]+) ns/iter", line):
            row = dict(work=found[1], value=int(found[2].replace(",", "")) / 1e6)
        elif found := re.match(r"\| (.*?) \| ([\d.]+) \|.*", line):
            row = dict(work=found[1], value=float(found[2]), note=line.strip("| \n"))
        else:
            continue
        add(path, dict(part=part, who="ours", unit="ms") | row)
        rows += 1
    sys.exit(not rows)


def latest(path):
    """The newest row of each work and peer, by device and commit."""
    groups = {}
    for line in open(path):
        row = json.loads(line)
        key = row["device"], row["commit"]
        groups.setdefault(key, {})[row["part"], row["work"], row["who"]] = row
    return groups


def number(value):
    return f"{value:.4g}" if value is not None else "-"


def report(path):
    text = "# Measured on a GPU\n\n"
    if not os.path.exists(path):
        return text + UNMEASURED.read_text()
    text += "Written by benches/gpu.sh. Times are medians in milliseconds; a ratio is the peer's time by ours.\n"
    for (device, commit), rows in latest(path).items():
        text += f"\n## {device}, commit {commit}\n"
        sides, checks, seconds = {}, [], []
        for (part, work, who), row in rows.items():
            if work == "part" and "value" in row:
                seconds.append(row["value"])
            elif row.get("unit") == "ms":
                sides.setdefault((part.replace("peer-ops", "bench-kernels"), work), {})[who] = row.get("value")
            else:
                checks.append((part, work, row))
        if seconds:
            text += f"\n{len(seconds)} parts took {sum(seconds) / 60:.0f} minutes, the longest {max(seconds):.0f} s.\n"
        if checks:
            text += "\n| check | what | result |\n|---|---|---|\n"
            for part, work, row in checks:
                result = [number(row["value"]) if "value" in row else "", row.get("unit"), row.get("note")]
                result = " ".join(filter(None, result)).replace("|", "/")
                text += f"| {part} | {work} | {result} |\n"
        if sides:
            text += "\n| part | work | ours | diffusers | ratio | compiled | ratio | other |\n|---|---|---|---|---|---|---|---|\n"
        for (part, work), times in sides.items():
            ours, cells = times.get("ours"), []
            for peer in ("diffusers", "compiled"):
                ratio = times[peer] / ours if ours and times.get(peer) else None
                cells += [number(times.get(peer)), number(ratio)]
            others = [f"{who}: {number(t)}" for who, t in times.items() if who not in ("ours", "diffusers", "compiled")]
            text += f"| {part} | {work} | {number(ours)} | {' | '.join(cells)} | {', '.join(others)} |\n"
    return text


def main(path, action, *arguments):
    fields = dict(argument.split("=", 1) for argument in arguments)
    if action == "add":
        add(path, row_of(fields))
    elif action == "bench":
        bench(path, fields["part"])
    else:
        print(report(path), end="")


main(*sys.argv[1:])
