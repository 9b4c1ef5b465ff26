"""Runs every check and says what each found; ends with 1 where one found anything."""

import sys
import time

import container
import documents
import entrypoint
import kubernetes
import platforms
import settings
import space
import units

CHECKS = [
    ("Dockerfile.cuda: hadolint, stages, user, tags", container.dockerfile),
    ("Dockerfile.cuda: every COPY, and the tree that cargo gets", container.context),
    ("deploy/entrypoint.sh: the build for each GPU", entrypoint.choices),
    ("shell scripts: shellcheck", platforms.shell),
    ("variables and flags exist", settings.names),
    ("deploy/kubernetes: schemas, and what refers to what", kubernetes.manifests),
    ("deploy/kubernetes/nats.conf: nats-server -t", kubernetes.nats),
    ("deploy/systemd: systemd-analyze", units.service),
    ("deploy/prometheus: promtool", units.alerts),
    ("deploy/runpod, deploy/inference-endpoint: fields", platforms.templates),
    ("deploy/huggingface-space: the client's commands against a stand-in for the Hub", space.created),
    ("docs: links, metrics, exit codes", documents.references),
    ("docs/capacity.md: what the model prints", documents.capacity),
]


def main():
    checks = CHECKS
    if "--build" in sys.argv[1:]:
        checks = checks + [("the image's tree: cargo check", container.build)]
    failed = False
    for title, check in checks:
        begun = time.monotonic()
        problems = list(check())
        failed |= bool(problems)
        print(f"{'FAILED' if problems else 'passed'}  {title} ({time.monotonic() - begun:.1f} s)")
        for problem in problems:
            print(f"        {problem}")
    sys.exit(failed)


main()
