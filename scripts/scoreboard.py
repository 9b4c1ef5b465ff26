"""Puts rows into tests/SCOREBOARD.md: each test that prints `SCOREBOARD|key|test|target|measured|yes` (or `NO`)
replaces the row of its key and leaves the others as they are. With `test` for the last the target was reached where all
tests pass. Passes its input on.

    cargo test ... -- --nocapture | scripts/scoreboard.py 5 6 7

SCOREBOARD_NOTE is added to where the figures come from: "dev build, beside other work".

The keys that must be among the rows are arguments. Ends with 1 when one is missing or a target was missed.
"""
import os
import pathlib
import re
import subprocess
import sys
import time

FILE = pathlib.Path(__file__).resolve().parent.parent / "tests/SCOREBOARD.md"
HEAD = """# Scoreboard

Made by `scripts/full-check.sh`; each of its parts replaces its own rows. Targets are the project's own.

| # | test | target | measured | reached | when, commit, machine |
|---|---|---|---|---|---|
"""


def order(key):
    return (0, int(key), "") if key.isdigit() else (1, 0, key)


def main():
    rows = {}
    if FILE.exists():
        for line in FILE.read_text().splitlines():
            if match := re.match(r"\| ([\w-]+) \| ", line):
                rows[match[1]] = line
    rows.pop("#", None)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=FILE.parent)
    when = f"{time.strftime('%Y-%m-%d')}, {commit.stdout.strip() or '?'}, {os.cpu_count()} cores"
    if note := os.environ.get("SCOREBOARD_NOTE"):
        when += f", {note}"
    found, failed = {}, False
    for line in sys.stdin:
        print(line, end="", flush=True)
        failed |= line.startswith("test result: FAILED")
        # The test's name may stand before it: libtest writes it without a line's end.
        _, mark, row = line.partition("SCOREBOARD|")
        if mark:
            key, *row = row.rstrip("\n").split("|")
            found[key] = row
    reached = {}
    for key, (test, target, measured, verdict) in found.items():
        verdict = verdict if verdict != "test" else "?" if failed else "yes"
        rows[key] = f"| {key} | {test} | {target} | {measured} | {verdict} | {when} |"
        reached[key] = verdict == "yes"
    FILE.write_text(HEAD + "".join(f"{rows[key]}\n" for key in sorted(rows, key=order)))
    missing = [key for key in sys.argv[1:] if key not in reached]
    missed = [key for key, yes in reached.items() if not yes]
    if missing or missed:
        sys.exit(f"scoreboard: no result for {missing}, target missed by {missed}")


main()
