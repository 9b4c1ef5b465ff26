"""The systemd unit and Prometheus' alerts, by the programs that will read them."""

import re
import tempfile
from pathlib import Path

from tree import complaints, read

UNIT = "deploy/systemd/aquatint.service"
# systemd-analyze's exposure, times ten: 18 is what the unit has, of 100.
EXPOSURE = 20


def service():
    text = read(UNIT)
    program = re.search(r"^ExecStart=(\S+)", text, re.M)[1]
    with tempfile.TemporaryDirectory() as name:
        unit = Path(name) / "aquatint.service"
        # It complains about a program that is not installed here.
        unit.write_text(text.replace(program, "/bin/true"))
        # Of a line that it does not know it says so, and ends with 0.
        yield from complaints(["systemd-analyze", "verify", str(unit)], may_speak=False)
        security = ["systemd-analyze", "security", "--offline=yes", "--no-pager", f"--threshold={EXPOSURE}", str(unit)]
        yield from complaints(security)[-1:]
    stop = int(re.search(r"^TimeoutStopSec=(\d+)", text, re.M)[1])
    drain = int(re.search(r"^AQUATINT_DRAIN_SECONDS=(\d+)", read("deploy/systemd/aquatint.env"), re.M)[1])
    if stop < drain + 10:
        yield f"killed after {stop} s, before the {drain} s for running jobs are over"


def alerts():
    yield from complaints(["promtool", "check", "rules", "deploy/prometheus/alerts.yml"])
    yield from complaints(["promtool", "test", "rules", "deploy/prometheus/alerts_test.yml"])
