"""deploy/huggingface-space: the front matter, and create.sh with the real client against a stand-in for the Hub."""

import json
import os
import re
import subprocess
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import yaml

import container
from tree import ROOT, complaints, read

CREATE = "deploy/huggingface-space/create.sh"


class Hub(BaseHTTPRequestHandler):
    """Answers what the client asks for while a Space is made, and remembers it."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/api/whoami-v2":
            self.answer({"name": "me", "type": "user", "orgs": [], "auth": {"accessToken": {"role": "write"}}})
        elif self.path.endswith("/runtime"):
            self.answer({"stage": "RUNNING", "hardware": {"current": "t4-small", "requested": "t4-small"}})
        elif self.path.startswith("/api/spaces/"):
            self.answer({"id": "me/aquatint", "sha": "0" * 40, "siblings": [], "tags": [], "downloads": 0, "likes": 0})
        else:
            self.answer({"error": "not here"}, 404)

    def do_HEAD(self):
        self.answer({}, 404)

    def do_POST(self):
        length = int(self.headers.get("content-length", 0))
        body = self.rfile.read(length).decode(errors="replace")
        self.server.seen.append((self.path, body))
        if "/preupload/" in self.path:
            files = json.loads(body)["files"]
            answers = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None} for f in files]
            self.answer({"files": answers})
        elif "/commit/" in self.path:
            self.answer({"commitOid": "0" * 40, "commitUrl": f"{self.server.url}/spaces/me/aquatint/commit/{'0' * 40}"})
        elif self.path == "/api/repos/create":
            self.answer({"url": f"{self.server.url}/spaces/me/aquatint", "id": "me/aquatint"})
        else:
            self.answer({})

    def answer(self, document, status=200):
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


def front_matter():
    text = read("deploy/huggingface-space/space.md")
    matter = yaml.safe_load(text.split("---\n")[1])
    exposed = dict(container.stages(container.instructions())[1])["EXPOSE"]
    if matter["sdk"] != "docker" or str(matter["app_port"]) != exposed:
        yield f"space.md: sdk {matter['sdk']}, app_port {matter['app_port']}; the image serves on {exposed}"
    if len(matter["short_description"]) > 60:
        yield "space.md: the Hub takes 60 characters for short_description"


def created():
    yield from front_matter()
    yield from sources()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.url, server.seen = f"http://127.0.0.1:{server.server_port}", []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with tempfile.TemporaryDirectory() as home:
            environment = {**os.environ, "HF_ENDPOINT": server.url, "HF_HOME": home, "HF_TOKEN": "hf_upload",
                           "SPACE_HF_TOKEN": "hf_read", "AQUATINT_API_KEYS": "key", "HF_HUB_DISABLE_TELEMETRY": "1",
                           "NO_PROXY": "127.0.0.1"}
            environment.pop("HF_HUB_OFFLINE", None)
            command = ["bash", CREATE, "me/aquatint", "--hardware", "t4-small", "--image", "registry.example.com/a:1",
                       "--volume", "hf://buckets/me/models:/data"]
            said = complaints(command, env=environment, timeout=60)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    yield from said[-5:]
    if not said:
        yield from asked(server.seen)


def asked(seen):
    """What the Hub was asked to do."""
    # `hf upload` makes sure of the repository too: the first is ours.
    created = json.loads(next((body for path, body in seen if path == "/api/repos/create"), "{}"))
    expected = {"name": "aquatint", "type": "space", "sdk": "docker", "hardware": "t4-small", "sleepTimeSeconds": 900}
    for key, value in expected.items():
        if created.get(key) != value:
            yield f"the Space was made with {key} {created.get(key)!r}, not {value!r}"
    volumes = [(entry.get("source"), entry.get("mountPath")) for entry in created.get("volumes", [])]
    if volumes != [("me/models", "/data")]:
        yield f"the Space got the volumes {volumes}"
    secrets = {entry["key"]: entry["value"] for entry in created.get("secrets", [])}
    if secrets != {"HF_TOKEN": "hf_read", "AQUATINT_API_KEYS": "key"}:
        yield f"the Space got the secrets {sorted(secrets)}"
    wanted = dict(re.findall(r"^(\w+)=(.*)$", read("deploy/huggingface-space/t4.env"), re.M))
    variables = {entry["key"]: entry["value"] for entry in created.get("variables", [])}
    if variables != wanted:
        yield f"the Space got the variables {variables}"
    commit = next((body for path, body in seen if "/commit/" in path), "")
    files = {json.loads(line)["value"]["path"] for line in commit.splitlines() if '"file"' in line}
    if files != {"README.md", "Dockerfile"}:
        yield f"the commit holds {sorted(files)}"


def sources():
    """Without --image: what a Space builds from is what the image is built from, and the lines that create.sh changes
    are there."""
    for line in ("ARG CAPS=", "ARG FEATURES="):
        if f"\n{line}" not in read(container.DOCKERFILE):
            yield f"{container.DOCKERFILE} has no line {line}"
    command = ["bash", CREATE, "me/aquatint", "--hardware", "a10g-small", "--dry-run"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        yield from done.stderr.splitlines()
        return
    uploaded = set(re.findall(r"^  \./(.*)$", done.stdout, re.M)) - {"README.md", "Dockerfile", ".dockerignore"}
    with tempfile.TemporaryDirectory() as name:
        list(container.staged(Path(name)))
        needed = {str(path.relative_to(name)) for path in Path(name).rglob("*") if path.is_file()}
    needed.add("deploy/entrypoint.sh")
    committed = set(subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.splitlines())
    yield from (f"the Space's build lacks {path}" for path in sorted((needed & committed) - uploaded))
    yield from (f"{path} is uploaded for nothing" for path in sorted(uploaded - needed))
