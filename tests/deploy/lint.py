"""Checks the Helm chart, the systemd unit and the compose file, for scripts/lint-deploy.

One line a check. What is wrong is said with it, and the exit code is 1. Nothing is installed into a
cluster, nothing is started.
"""

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import helm_python as helm
import kubernetes_validate
import yaml

CHART = Path("deploy/helm/aura-hitl")
UNIT = Path("deploy/systemd/aura-hitl.service")
# The oldest release that Chart.yaml names, and the newest whose schemas we have.
RELEASES = ["1.27", "1.37"]
# Seconds after SIGTERM within which the process is gone, however it is set.
GONE = 10
SECRETS = {"DATABASE_URL", "REDIS_URL", "REDIS_PASSWORD", "JWT_SECRET", "JWT_SECRET_PREVIOUS"}

# What must be refused, and a word of why.
BAD = [
    ({"replicas": 3}, "replicas"),
    ({"image": {"repo": "x"}}, "repo"),
    ({"image": {"repository": ""}}, "repository"),
    ({"existingSecret": ""}, "existingSecret"),
    ({"existingSecret": "Not A Name"}, "existingSecret"),
    ({"config": {"jwt_secret": "a secret in the values"}}, "jwt_secret"),
    ({"config": {"auto_migrate": True}}, "auto_migrate"),
    ({"config": {"Shutdown": 1}}, "Shutdown"),
    ({"config": {"shutdown_seconds": 10}}, "shutdown_seconds"),
    ({"config": {"shutdown_seconds": 2.5}}, "shutdown_seconds"),
    ({"config": {"retention": {"days": 1}}}, "retention"),
    ({"extraEnv": [{"name": "JWT_SECRET", "value": "a secret in the values"}]}, "extraEnv"),
    ({"extraEnv": [{"value": "x"}]}, "extraEnv"),
    ({"otlpEndpoint": "collector:4318"}, "otlpEndpoint"),
    ({"replicaCount": 0}, "replicaCount"),
    ({"podDisruptionBudget": {"maxUnavailable": 0}}, "maxUnavailable"),
    ({"metrics": {"port": 8081}}, "metrics"),
    ({"metrics": {"enabled": False, "serviceMonitor": {"enabled": True}}}, "metrics.enabled"),
    ({"autoscaling": {"enabled": True, "minReplicas": 5, "maxReplicas": 4}}, "maxReplicas"),
    ({"policy": 5}, "policy"),
    ({"policy": "x", "config": {"policy_file": "/policy.toml"}}, "policy_file"),
    ({"readinessPath": "/"}, "readinessPath"),
    ({"terminationGracePeriodSeconds": 10}, "terminationGracePeriodSeconds"),
    ({"terminationGracePeriodSeconds": 15}, "must be at least 16"),
    ({"preStopSeconds": 20}, "must be at least 31"),
]

failed = 0


def check(name, fault=None):
    """A line: ok, or FAIL with what is wrong."""
    global failed
    failed += bool(fault)
    print(f"FAIL  {name}\n      {fault}" if fault else f"ok    {name}")


def values_files():
    yield "default values", {}
    for file in sorted(CHART.glob("ci/*-values.yaml")):
        yield file.name, yaml.safe_load(file.read_text())


def one(objects, kind, hook=False):
    found = [o for o in objects if o["kind"] == kind and is_hook(o) == hook]
    return found[0] if found else None


def is_hook(o):
    return "helm.sh/hook" in o["metadata"].get("annotations", {})


def of_kubernetes(objects):
    for o in objects:
        if "monitoring.coreos.com" in o["apiVersion"]:
            continue  # no schema of Kubernetes' own
        for release in RELEASES:
            try:
                kubernetes_validate.validate(o, release, strict=True)
            except kubernetes_validate.ValidationError as error:
                return f"{o['kind']} {o['metadata']['name']} ({release}): {error.message}"
    return None


def of_settings(objects, wanted, policy):
    """The TOML says what `config` says, numbers as they are; the migration gets the same. A policy file is
    there to the letter, and where the TOML says."""
    if policy:
        wanted = {**wanted, "policy_file": "/config/policy.toml"}
    maps = [o for o in objects if o["kind"] == "ConfigMap"]
    for found in maps:
        table = tomllib.loads(found["data"]["aura-hitl.toml"])
        if table != {"auto_migrate": False, **wanted}:
            return f"{found['metadata']['name']} holds {table}"
        if found["data"].get("policy.toml", "") != policy:
            return f"{found['metadata']['name']} has another policy: {found['data'].get('policy.toml')}"
    for workload in filter(None, [one(objects, "Deployment"), one(objects, "Job", hook=True)]):
        pod = workload["spec"]["template"]["spec"]
        mounts = {m["name"]: m for m in pod["containers"][0]["volumeMounts"]}
        [volume] = [v for v in pod["volumes"] if v["name"] == "config"]
        named = volume["configMap"]["name"]
        if mounts["config"]["mountPath"] != "/config" or named not in {m["metadata"]["name"] for m in maps}:
            return f"/config is not {named}"
    known = Path("config/default.toml").read_text()
    unknown = [key for key in wanted if not re.search(rf"^#? ?{key} = ", known, re.M)]
    return f"config/default.toml has no {unknown}" if unknown else None


def of_pods(objects):
    """Ordinary users that can write nothing, with secrets from files."""
    for workload in filter(None, [one(objects, "Deployment"), one(objects, "Job", hook=True)]):
        pod = workload["spec"]["template"]["spec"]
        [container] = pod["containers"]
        security, inner = pod["securityContext"], container["securityContext"]
        if not (security["runAsNonRoot"] and security["runAsUser"] == 10001):
            return "it may run as root"
        if security["seccompProfile"]["type"] != "RuntimeDefault":
            return "no seccomp profile"
        if inner["capabilities"]["drop"] != ["ALL"] or inner["allowPrivilegeEscalation"]:
            return "it keeps capabilities"
        if not inner["readOnlyRootFilesystem"]:
            return "it may write"
        if pod["automountServiceAccountToken"]:
            return "it has a token of Kubernetes"
        if not container["resources"]:
            return "no resources"
        named = {e["name"]: e.get("value") for e in container["env"]}
        if SECRETS & named.keys():
            return f"{SECRETS & named.keys()} in the environment"
        [volume] = [v for v in pod["volumes"] if v["name"] == "secrets"]
        files = {"/secrets/" + item["path"] for item in volume["secret"]["items"]}
        given = {value for name, value in named.items() if name.endswith("_FILE")}
        if files != given or not given:
            return f"mounted are {files}, named are {given}"
        mounted = {m["name"] for m in container["volumeMounts"]}
        if mounted != {v["name"] for v in pod["volumes"]}:
            return f"mounted are {mounted}"
    return None


def of_names(objects):
    """Every variable of ours is one that the service knows."""
    settings, code = Path("config/default.toml").read_text(), Path("src/config/names.rs").read_text()
    [container] = one(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    for name in (e["name"] for e in container["env"]):
        key = name.removeprefix("AURA_HITL_")
        is_setting = re.search(rf"^#? ?{key.lower()} = ", settings, re.M) or f'"{key.removesuffix("_FILE")}"' in code
        if name not in ("AURA_HITL_CONFIG", "RUST_LOG") and not name.startswith("OTEL_") and not is_setting:
            return f"the service knows no {name}"
    return None


def of_roll_out(objects):
    deployment = one(objects, "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    [container] = pod["containers"]
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    if pod["terminationGracePeriodSeconds"] <= pause + GONE:
        return f"killed {pod['terminationGracePeriodSeconds']} s after, of which {pause} s pause"
    if deployment["spec"]["strategy"]["rollingUpdate"] != {"maxUnavailable": 0, "maxSurge": 1}:
        return "a roll-out takes a replica away first"
    probes = {k: container[k]["httpGet"]["path"] for k in ("startupProbe", "livenessProbe")}
    if set(probes.values()) != {"/health/live"}:
        return f"probes are {probes}"
    return None


def of_hooks(objects):
    """What the migration needs is there before anything of the release is."""
    job = one(objects, "Job", hook=True)
    if job is None:
        return None
    weight = lambda o: int(o["metadata"]["annotations"]["helm.sh/hook-weight"])
    earlier = {(o["kind"], o["metadata"]["name"]) for o in objects if is_hook(o) and weight(o) < weight(job)}
    later = {(o["kind"], o["metadata"]["name"]) for o in objects} - earlier
    pod = job["spec"]["template"]["spec"]
    needed = {("ServiceAccount", pod.get("serviceAccountName", "default"))}
    needed |= {("ConfigMap", v["configMap"]["name"]) for v in pod["volumes"] if "configMap" in v}
    return f"{needed & later} is not there yet" if needed & later else None


def of_selectors(objects):
    """Everything that selects pods selects the servers, and not the migration."""
    server = one(objects, "Deployment")["spec"]["template"]["metadata"]["labels"]
    job = one(objects, "Job", hook=True)
    migration = job["spec"]["template"]["metadata"]["labels"] if job else {}
    for o in objects:
        spec = o.get("spec", {})
        match = spec.get("podSelector") or spec.get("selector")
        if not match or o["kind"] == "ServiceMonitor":
            continue
        match = match.get("matchLabels", match).items()
        if not match <= server.items() or match <= migration.items():
            return f"{o['kind']} {o['metadata']['name']} selects {dict(match)}"
    return None


def chart():
    report = helm.lint(CHART, {}, strict=True, kube_version="v1.30.0")
    bad = [m for m in report["messages"] if m["severity"] > 1] + report["errors"]
    check(f"helm lint --strict (Helm {helm.helm_sdk_version()})", bad and json.dumps(bad))
    default = yaml.safe_load((CHART / "values.yaml").read_text())
    with helm.Chart.load(CHART) as loaded:
        for name, values in values_files():
            rendered = loaded.render(values, name="aura-hitl", namespace="approvals", is_install=True)
            texts = [text for path, text in rendered.items() if path.endswith(".yaml")]
            objects = [o for text in texts for o in yaml.safe_load_all(text) if o]
            config = {**default["config"], **values.get("config", {})}
            check(f"{name}: {len(objects)} objects, as Kubernetes has them", of_kubernetes(objects))
            check(f"{name}: settings", of_settings(objects, config, values.get("policy", "")))
            check(f"{name}: pods", of_pods(objects))
            check(f"{name}: variables", of_names(objects))
            check(f"{name}: roll-out", of_roll_out(objects))
            check(f"{name}: migration first", of_hooks(objects))
            check(f"{name}: selectors", of_selectors(objects))
        annotation = lambda values: one(
            [o for path, text in loaded.render(values, name="aura-hitl", namespace="approvals").items()
             if path.endswith(".yaml") for o in yaml.safe_load_all(text) if o],
            "Deployment")["spec"]["template"]["metadata"]["annotations"]["checksum/config"]
        sums = {annotation({}), annotation({"policy": "# one"}), annotation({"policy": "# two"})}
        check("another policy is another roll-out", None if len(sums) == 3 else sums)
        for values, word in BAD:
            try:
                loaded.render(values, name="aura-hitl", namespace="approvals")
                fault = "taken"
            except helm.HelmError as error:
                fault = None if word in str(error) else f"refused, but: {error}"
            check(f"refused: {json.dumps(values)}", fault)


def run(name, *command):
    done = subprocess.run(command, capture_output=True, text=True)
    said = (done.stdout + done.stderr).strip().replace("\n", "\n      ")
    check(name, f"exit {done.returncode}\n      {said}" if done.returncode else None)


def unit():
    text = UNIT.read_text()
    stop = int(re.search(r"^TimeoutStopSec=(\d+)$", text, re.M).group(1))
    check("unit: killed only after the drain", stop <= GONE and f"TimeoutStopSec is {stop}")
    # It looks whether programs are there: one that is stands in for ours.
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / UNIT.name
        copy.write_text(text.replace("/usr/local/bin/aura-hitl", "/bin/true"))
        run("unit: systemd-analyze verify", "systemd-analyze", "verify", str(copy))
        run("unit: systemd-analyze security below 2.0", "systemd-analyze", "security", "--offline=true",
            "--threshold=20", "--no-pager", str(copy))


def compose():
    tool = Path(sys.executable).parent
    run("compose.yaml: the compose specification's schema", str(tool / "check-jsonschema"),
        "--builtin-schema", "vendor.compose-spec", "compose.yaml")
    services = yaml.safe_load(Path("compose.yaml").read_text())["services"]
    without = [name for name, service in services.items() if "healthcheck" not in service]
    check("compose.yaml: every service has a healthcheck", without and f"not {without}")
    grace = int(services["aura-hitl"]["stop_grace_period"].removesuffix("s"))
    check("compose.yaml: killed only after the drain", grace <= GONE and f"stop_grace_period is {grace} s")


def style():
    tool = Path(sys.executable).parent
    rules = "{extends: relaxed, rules: {line-length: {max: 140}}}"
    files = [str(CHART / "values.yaml"), str(CHART / "Chart.yaml"), *map(str, CHART.glob("ci/*")), "compose.yaml"]
    run("yamllint", str(tool / "yamllint"), "--strict", "-d", rules, *files)
    scripts = [str(s) for s in sorted(Path("scripts").iterdir()) if "bash" in s.read_text()[:200]]
    run(f"shellcheck of {len(scripts)} scripts", str(tool / "shellcheck"), "--severity=warning", "--shell=bash",
        "-x", "-P", "SCRIPTDIR/..", *scripts)


chart()
unit()
compose()
style()
print(f"{failed} failed")
sys.exit(1 if failed else 0)
