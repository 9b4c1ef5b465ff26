"""Files for RunPod and Inference Endpoints, and the shell scripts of deploy/."""

import inspect
import json
import subprocess
import sys

from tree import ROOT, complaints, read, tracked

# Fields of RunPod's REST API, rest.runpod.io/v1: POST /templates and POST /endpoints.
TEMPLATE = {"name", "imageName", "category", "isPublic", "isServerless", "containerDiskInGb", "volumeInGb",
            "volumeMountPath", "ports", "env", "readme", "dockerEntrypoint", "dockerStartCmd", "containerRegistryAuthId"}
ENDPOINT = {"name", "templateId", "computeType", "gpuTypeIds", "gpuCount", "workersMin", "workersMax", "idleTimeout",
            "scalerType", "scalerValue", "executionTimeoutMs", "flashboot", "networkVolumeId", "dataCenterIds",
            "allowedCudaVersions", "vcpuCount", "cpuFlavorIds"}


def templates():
    for path in tracked("deploy/runpod"):
        if not path.endswith(".json"):
            continue
        fields = json.loads(read(path))
        allowed = ENDPOINT if "templateId" in fields else TEMPLATE
        yield from (f"{path}: RunPod knows no {key}" for key in fields.keys() - allowed)
        if "templateId" not in fields and ":" not in fields.get("imageName", "").rsplit("/", 1)[-1]:
            yield f"{path}: no imageName with a tag"
        port = fields.get("env", {}).get("PORT")
        if port and fields["ports"] != [f"{port}/http"]:
            yield f"{path}: PORT is {port}, but {fields['ports']} is open"
    yield from endpoint()


def endpoint():
    """The arguments that create.py makes are ones that the client takes."""
    from huggingface_hub import create_inference_endpoint

    command = [sys.executable, "deploy/inference-endpoint/create.py", "x", "--image", "i", "--repository", "r", "--dry-run"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        yield from done.stderr.splitlines()
        return
    known = inspect.signature(create_inference_endpoint).parameters
    yield from (f"create_inference_endpoint knows no {key}" for key in json.loads(done.stdout).keys() - known.keys())


def shell():
    scripts = [path for path in tracked("deploy", "scripts/check-deploy.sh") if path.endswith(".sh")]
    yield from complaints(["shellcheck", *scripts])
