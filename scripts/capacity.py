#!/usr/bin/env python3
"""A model of 1, 10 and 1,000 GPUs: cost, waiting, cold starts, and what the queue's servers carry.

Nothing here is measured. The seconds a picture takes are what kernels should reach by their counts of arithmetic and bytes;
the other assumptions are the constants below. Seeded, standard library alone.

    scripts/capacity.py            print the tables
    scripts/capacity.py --write    put them into docs/capacity.md
    scripts/capacity.py --check    end with 1 where docs/capacity.md has others
"""

import collections
import heapq
import math
import random
import re
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs/capacity.md"

# Seconds a picture of 1024x1024 (SD 1.5: 512x512) takes: (at the hardware's floor, what kernels should reach).
GPUS = ("T4", "A10G", "H200")
SECONDS = {
    "SD 1.5, 20 steps": ((0.63, 1.8), (0.53, 0.86), (0.05, 0.10)),
    "SDXL with LCM-LoRA, 4 steps": ((0.66, 1.76), (0.58, 0.82), (0.053, 0.088)),
    "SDXL, 30 steps": ((6.9, 18.7), (6.2, 8.4), (0.57, 0.86)),
    "FLUX.1 schnell, 4 steps": ((4.7, 12.1), (4.3, 5.5), (0.39, 0.47)),
    "FLUX.1 dev, 28 steps": ((34, 86), (31, 39), (2.77, 3.34)),
}
# Dollars an hour: T4 small and A10G small of Hugging Face Spaces by its documentation; the H200's is an assumption.
DOLLARS = {"T4": 0.40, "A10G": 1.00, "H200": 4.00}
BUSY = 0.7

# The mix of jobs in the simulations, on an A10G: seconds, part of all jobs, denoising steps.
MIX = ((0.82, 0.8, 4), (8.4, 0.2, 30))
MIX_H200 = ((0.088, 0.8, 4), (0.86, 0.2, 30))
JOBS = 40_000
SEED = 8

# A picture as PNG, and one chunk of JetStream's object store.
PICTURE_MB = 1.5
CHUNK_MB = 0.128
# What one stream's leader takes when each message is synchronised to disk: 1 ms each. A cloud volume's bandwidth.
SYNCED_WRITES = 1000
VOLUME_MB = 250


def mean(mix):
    return sum(seconds * part for seconds, part, _ in mix)


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(str(cell) for cell in line) + " |\n" for line in lines)


def rounded(seconds):
    return "0" if seconds < 0.005 else f"{seconds:.2f}" if seconds < 10 else f"{seconds:.0f}"


def cost():
    """Pictures a minute and dollars for 1,000."""
    rows = []
    for work, times in SECONDS.items():
        cells = [work]
        for gpu, (floor, reach) in zip(GPUS, times):
            dollars = DOLLARS[gpu] / 3600 * reach * 1000 / BUSY
            cells.append(f"{60 / reach:.1f} of at most {60 / floor:.1f}, {dollars:.2f} $")
        rows.append(cells)
    return table(["model", *(f"{gpu}, {DOLLARS[gpu]:.2f} $ an hour" for gpu in GPUS)], rows)


def waits(servers, load, mix, jobs=JOBS):
    """Seconds that jobs wait, sorted: Poisson arrivals, first come, first served, each server one job at a time."""
    chance = random.Random(f"{SEED} {servers} {load}")
    free, now, waited = [0.0] * servers, 0.0, []
    rate = load * servers / mean(mix)
    short, part = mix[0][0], mix[0][1]
    for _ in range(jobs):
        now += chance.expovariate(rate)
        begin = max(now, free[0])
        heapq.heapreplace(free, begin + (short if chance.random() < part else mix[1][0]))
        waited.append(begin - now)
    return sorted(waited[jobs // 10:])


def pollaczek_khinchine(load, mix):
    """The mean wait with one server, exactly: load / (1 - load) * E[S^2] / (2 E[S])."""
    square = sum(seconds**2 * part for seconds, part, _ in mix)
    return load / (1 - load) * square / (2 * mean(mix))


def queueing():
    """Waiting against load."""
    rows = []
    for servers in (1, 10, 1000):
        for load in (0.5, 0.7, 0.8, 0.9, 0.95):
            sample = waits(servers, load, MIX)
            average = sum(sample) / len(sample)
            if servers == 1 and load <= 0.8:
                exact = pollaczek_khinchine(load, MIX)
                if abs(average / exact - 1) > 0.15:
                    sys.exit(f"the simulation says {average:.2f} s, the formula {exact:.2f} s")
            p50, p95, p99 = (sample[int(len(sample) * p)] for p in (0.5, 0.95, 0.99))
            pictures = load * servers / mean(MIX) * 60
            rows.append([servers, f"{load:.0%}", f"{pictures:,.0f}", *map(rounded, (average, p50, p95, p99))])
    return table(["GPUs", "load", "pictures a minute", "mean wait, s", "median", "95 %", "99 %"], rows)


def lone_worker(per_hour, idle_s, cold_s, days=60):
    """One worker that leaves after `idle_s` without work: part of the jobs that found none, mean wait, hours up a day."""
    chance = random.Random(f"{SEED} {per_hour} {idle_s} {cold_s}")
    end, now, free, leaves, up, cold, waited, jobs = days * 86400, 0.0, 0.0, 0.0, 0.0, 0, 0.0, 0
    while True:
        now += chance.expovariate(per_hour / 3600)
        if now > end:
            return cold / jobs, waited / jobs, up / days / 3600
        begin = max(now, free)
        if now > leaves:
            cold += 1
            begin = now + cold_s
            up += cold_s
        else:
            up -= leaves - begin if begin < leaves else 0
        free = begin + (MIX[0][0] if chance.random() < MIX[0][1] else MIX[1][0])
        leaves = free + idle_s
        up += leaves - begin
        waited, jobs = waited + begin - now, jobs + 1


def cold_starts():
    """Scale to zero with one worker."""
    rows = []
    for per_hour in (1, 6, 30, 120):
        for idle_s in (60, 600, 1800):
            part, _, hours = lone_worker(per_hour, idle_s, 90)
            means = [lone_worker(per_hour, idle_s, cold_s)[1] for cold_s in (15, 90, 300)]
            rows.append([per_hour, idle_s, f"{part:.0%}", *map(rounded, means), f"{hours:.1f}"])
    head = ["jobs an hour", "kept idle, s", "find no worker", "mean wait, s: cold start of 15 s", "of 90 s", "of 300 s"]
    return table([*head, "GPU hours a day (90 s)"], rows)


def fleet(peak, cold_s, threshold, down, step_s=5):
    """A day of work for up to `peak` GPUs at 80 %, between a fifth and all of it, in the way of KEDA and the autoscaler:
    as many workers as there are `threshold` jobs, waiting and running; `down(workers)` may leave in a minute.

    Returns GPU hours, the mean and the longest wait."""
    chance = random.Random(f"{SEED} {peak} {cold_s} {threshold}")
    service, queue, coming, hours, recent = mean(MIX), 0.0, collections.deque(), 0.0, collections.deque()
    waited = arrived = longest = 0.0
    ready = math.ceil(0.2 * peak)
    for tick in range(86400 // step_s):
        now = tick * step_s
        rate = 0.8 * peak / service * (0.6 - 0.4 * math.cos(2 * math.pi * now / 86400))
        jobs = max(0.0, chance.gauss(rate * step_s, math.sqrt(rate * step_s)))
        while coming and coming[0][0] <= now:
            ready += coming.popleft()[1]
        running = min(ready, queue + rate * service)
        queue = max(0.0, queue + jobs - ready * step_s / service)
        workers = ready + sum(count for _, count in coming)
        wanted = min(2 * peak, max(1, math.ceil((queue + running) / threshold)))
        while recent and recent[0][0] <= now - 300:
            recent.popleft()
        recent.append((now, wanted))
        if wanted > workers:
            # The autoscaler's default: double, or four more, every 15 s.
            if now % 15 == 0:
                coming.append((now + cold_s, min(wanted - workers, max(4, workers))))
        elif now % 60 == 0:
            keep = max(count for _, count in recent)
            ready -= max(0, min(ready - keep, down(ready)))
        hours += workers * step_s / 3600
        wait = queue / ready * service
        waited, arrived, longest = waited + wait * jobs, arrived + jobs, max(longest, wait)
    return hours, waited / arrived, longest


def fleets():
    """A day under autoscaling."""
    rows = []
    for peak in (10, 1000):
        for cold_s in (30, 180):
            for threshold in (1, 2, 4):
                rows.append([threshold, "a tenth", lambda workers: max(1, workers // 10), peak, cold_s])
    rows.append([1, "one", lambda workers: 1, 1000, 180])
    cells = []
    for threshold, name, down, peak, cold_s in rows:
        hours, average, longest = fleet(peak, cold_s, threshold, down)
        cells.append([peak, cold_s, threshold, name, f"{hours:,.0f} of {24 * peak:,}", rounded(average), rounded(longest)])
    head = ["GPUs at peak", "cold start, s", "lagThreshold", "may leave in a minute", "GPU hours", "mean wait, s", "longest, s"]
    return table(head, cells)


def traffic():
    """What NATS carries at 80 % load."""
    rows = []
    for gpu, mix in (("A10G", MIX), ("H200", MIX_H200)):
        for gpus in (1, 10, 100, 1000):
            jobs = 0.8 * gpus / mean(mix)
            steps = sum(part * steps for _, part, steps in mix)
            events, chunks = jobs * (steps + 4), jobs * (math.ceil(PICTURE_MB / CHUNK_MB) + 1)
            pictures = jobs * PICTURE_MB
            limits = []
            if jobs > SYNCED_WRITES:
                limits.append("jobs")
            if chunks > SYNCED_WRITES or pictures > VOLUME_MB:
                limits.append("pictures")
            if events > SYNCED_WRITES:
                limits.append("events")
            cells = (f"{jobs:,.1f}", f"{events:,.0f}", f"{chunks:,.0f}", f"{pictures:,.1f}")
            rows.append([gpu, gpus, *cells, ", ".join(limits) or "none"])
    head = ["GPU", "GPUs", "jobs/s", "events/s", "object chunks/s", "pictures, MB/s", "beyond one stream"]
    return table(head, rows)


TABLES = {"cost": cost, "queueing": queueing, "cold starts": cold_starts, "fleets": fleets, "traffic": traffic}


def filled(page):
    for name, make in TABLES.items():
        block = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.S)
        if not block.search(page):
            sys.exit(f"docs/capacity.md has no place for {name!r}")
        text = make()
        page = block.sub(lambda found: found[1] + text + found[2], page)
    return page


def main():
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(filled(PAGE.read_text()))
    elif sys.argv[1:] == ["--check"]:
        page = PAGE.read_text()
        if filled(page) != page:
            sys.exit("docs/capacity.md is not what scripts/capacity.py prints: scripts/capacity.py --write")
    else:
        for name, make in TABLES.items():
            print(f"{name}\n\n{make()}")


if __name__ == "__main__":
    main()
