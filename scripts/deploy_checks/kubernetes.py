"""deploy/kubernetes: against the schemas of Kubernetes, and whether what refers to something finds it."""

import os
import re
import subprocess
import tempfile

import yaml

from tree import ROOT, complaints, read, tracked

FOLDER = "deploy/kubernetes"
# What KEDA's definition of a ScaledObject allows, with the scaler's own fields (keda.sh/docs, 2.14).
SCALED_OBJECT = {"scaleTargetRef", "minReplicaCount", "maxReplicaCount", "idleReplicaCount", "pollingInterval",
                 "initialCooldownPeriod", "cooldownPeriod", "fallback", "advanced", "triggers"}
TRIGGER = {"natsServerMonitoringEndpoint", "account", "stream", "consumer", "lagThreshold", "activationLagThreshold",
           "useHttps"}


def manifests():
    built = subprocess.run(["kubectl", "kustomize", FOLDER], cwd=ROOT, capture_output=True, text=True)
    if built.returncode:
        yield from built.stderr.splitlines()
        return
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(built.stdout)
        file.flush()
        # It knows no ScaledObject and says so on a line of its own; `scaling` checks that one.
        yield from complaints(["kubernetes-validate", "--strict", "--quiet", file.name])
    yield from complaints(["yamllint", "--strict", "-d", "{extends: relaxed, rules: {line-length: {max: 130}}}", "deploy"])
    objects = list(yaml.safe_load_all(built.stdout))
    of_kind = {}
    for thing in objects:
        of_kind.setdefault(thing["kind"], {})[thing["metadata"]["name"]] = thing
    yield from pods(of_kind)
    yield from selectors(of_kind)
    yield from scaling(of_kind)


def workloads(of_kind):
    return {**of_kind["Deployment"], **of_kind["StatefulSet"]}


def pods(of_kind):
    routes = read("src/api/mod.rs") + read("src/api/ready.rs")
    for name, workload in workloads(of_kind).items():
        pod = workload["spec"]["template"]["spec"]
        if pod["securityContext"].get("runAsUser") != 1000 or not pod["securityContext"].get("runAsNonRoot"):
            yield f"{name}: does not run as user 1000"
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        volumes |= {claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", [])}
        for volume in pod.get("volumes", []):
            if "configMap" in volume and volume["configMap"]["name"] not in of_kind["ConfigMap"]:
                yield f"{name}: there is no ConfigMap {volume['configMap']['name']}"
        for container in pod["containers"]:
            if re.search(r"(:latest|^[^:]*)$", container["image"]):
                yield f"{name}: {container['image']} has no exact tag"
            if not container["securityContext"].get("readOnlyRootFilesystem"):
                yield f"{name}: the root file system can be written"
            for mount in container["volumeMounts"]:
                if mount["name"] not in volumes:
                    yield f"{name}: there is no volume {mount['name']}"
            ports = {port["name"] for port in container["ports"]}
            for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                probe = container[kind]["httpGet"]
                if probe["port"] not in ports:
                    yield f"{name}: {kind} asks port {probe['port']}"
                if name.startswith("aquatint") and f'"{probe["path"]}"' not in routes:
                    yield f"{name}: {kind} asks {probe['path']}, which is no route"
            for source in container.get("envFrom", []):
                if "configMapRef" in source and source["configMapRef"]["name"] not in of_kind["ConfigMap"]:
                    yield f"{name}: there is no ConfigMap {source['configMapRef']['name']}"
            drain = [int(e["value"]) for e in container.get("env", []) if e["name"] == "AQUATINT_DRAIN_SECONDS"]
            if drain and drain[0] + 10 > pod["terminationGracePeriodSeconds"]:
                yield f"{name}: killed before it has drained"


def selectors(of_kind):
    labels = {name: w["spec"]["template"]["metadata"]["labels"] for name, w in workloads(of_kind).items()}

    def chosen(selector):
        return [name for name, of_pod in labels.items() if selector.items() <= of_pod.items()]

    for name, workload in workloads(of_kind).items():
        if name not in chosen(workload["spec"]["selector"]["matchLabels"]):
            yield f"{name} does not select its own pods"
    for name, budget in of_kind["PodDisruptionBudget"].items():
        if chosen(budget["spec"]["selector"]["matchLabels"]) != [name]:
            yield f"the budget {name} is for {chosen(budget['spec']['selector']['matchLabels'])}"
    for name, service in of_kind["Service"].items():
        selected = chosen(service["spec"]["selector"])
        if not selected:
            yield f"the service {name} selects no pods"
        for of_service in selected:
            ports = workloads(of_kind)[of_service]["spec"]["template"]["spec"]["containers"][0]["ports"]
            offered = {port["name"] for port in ports} | {port["containerPort"] for port in ports}
            for port in service["spec"]["ports"]:
                if port.get("targetPort", port["port"]) not in offered:
                    yield f"the service {name}: {of_service} has no port {port}"


def scaling(of_kind):
    for name, scaled in of_kind["ScaledObject"].items():
        spec = scaled["spec"]
        yield from (f"ScaledObject {name}: KEDA knows no {key}" for key in spec.keys() - SCALED_OBJECT)
        target = spec["scaleTargetRef"]["name"]
        if target not in of_kind["Deployment"]:
            yield f"ScaledObject {name}: there is no Deployment {target}"
        elif "replicas" in of_kind["Deployment"][target]["spec"]:
            yield f"{target}: every apply would undo the scaling"
        if spec["minReplicaCount"] != 0:
            yield f"ScaledObject {name}: does not scale to zero"
        for trigger in spec["triggers"]:
            metadata = trigger["metadata"]
            if trigger["type"] != "nats-jetstream":
                yield f"ScaledObject {name}: {trigger['type']}"
            yield from (f"ScaledObject {name}: the scaler knows no {key}" for key in metadata.keys() - TRIGGER)
            yield from (f"ScaledObject {name}: {key} has to be text" for key, v in metadata.items() if not isinstance(v, str))
            yield from queue_names(of_kind, metadata)
            service, namespace = metadata["natsServerMonitoringEndpoint"].split(".")[:2]
            if service not in of_kind["Service"] or namespace not in of_kind["Namespace"]:
                yield f"ScaledObject {name}: there is no service {service} in {namespace}"


def queue_names(of_kind, metadata):
    """The stream and the consumer are those that workers make for the model that is set."""
    if f'"{metadata["stream"]}"' not in "".join(read(path) for path in tracked("src/queue")):
        yield f"the queue has no stream {metadata['stream']}"
    settings = next(thing["data"] for thing in of_kind["ConfigMap"].values() if "SD_MODEL_ID" in thing["data"])
    model = settings["SD_MODEL_ID"].rsplit("/", 1)[-1]
    consumer = "worker-" + re.sub(r"[^A-Za-z0-9_-]", lambda m: f"={ord(m[0]):02x}", model)
    if metadata["consumer"] != consumer:
        yield f"the consumer of {model} is {consumer}, not {metadata['consumer']}"
    if int(settings["AQUATINT_QUEUE_REPLICAS"]) > of_kind["StatefulSet"]["nats"]["spec"]["replicas"]:
        yield f"there are no {settings['AQUATINT_QUEUE_REPLICAS']} servers"


def nats():
    yield from complaints(["nats-server", "-t", "-c", f"{FOLDER}/nats.conf"], env={**os.environ, "POD_NAME": "nats-0"})
    if not re.search(r"^\s*sync_interval: always$", read(f"{FOLDER}/nats.conf"), re.M):
        yield "nats.conf: acknowledged jobs could be lost without sync_interval: always"
