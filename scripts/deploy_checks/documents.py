"""docs/ and the pages of deploy/: what they name is there."""

import re
import sys

from tree import ROOT, complaints, read, tracked


def references():
    for path in tracked("docs", "deploy", "README.md"):
        if path.endswith(".md"):
            for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", read(path)):
                if "://" not in target and not (ROOT / path).parent.joinpath(target).exists():
                    yield f"{path}: there is no {target}"
    operations, alerts = read("docs/operations.md"), read("deploy/prometheus/alerts.yml")
    exported = set(re.findall(r'"((?:aquatint|process)_[a-z_]+)"', read("src/api/metrics.rs")))
    rows = "".join(line.split(" | ")[0] for line in operations.splitlines() if line.startswith("| "))
    named = set(re.findall(r"`((?:aquatint|process)_[a-z_]+)`", rows))
    yield from (f"docs/operations.md lacks the metric {name}" for name in sorted(exported - named))
    yield from (f"docs/operations.md explains {name}, which is no metric" for name in sorted(named - exported))
    for name in sorted(set(re.findall(r"\baquatint_[a-z_]+", alerts + operations))):
        # A histogram is three metrics.
        if name not in exported and re.sub(r"_(bucket|sum|count)$", "", name) not in exported:
            yield f"alerts.yml or docs/operations.md: there is no metric {name}"
    for alert in re.findall(r"alert: (\w+)", alerts):
        if f"### {alert}\n" not in operations:
            yield f"docs/operations.md does not say what to do about {alert}"
    codes = set(re.findall(r"=> (\d+),", read("src/cli/mod.rs"))) | {"0", "130", "143"}
    for code in codes:
        if not re.search(rf"^\| {code}\b", operations, re.M):
            yield f"docs/operations.md does not explain exit code {code}"


def capacity():
    """The page holds what the program prints now."""
    yield from complaints([sys.executable, "scripts/capacity.py", "--check"])
