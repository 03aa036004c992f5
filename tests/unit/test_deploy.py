"""What is in `deploy/` names only things that exist: metrics, settings, commands, files; and gives processes time to stop."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi import FastAPI
from prometheus_client import CollectorRegistry, generate_latest

from app.api.envelope import Envelope
from app.config import Settings
from workers.cli.main import app as command_line
from workers.metrics import PollerMetrics, WorkerMetrics

DEPLOY = Path(__file__).parent.parent.parent / "deploy"
YAML = sorted(DEPLOY.rglob("*.yaml"))
SETTINGS = Settings.model_fields
#: Seconds that uvicorn gives requests under way (app/api/listening.py).
API_DRAIN_S = 10


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def exposed() -> set[str]:
    """Every series that a process of ours exposes."""
    api = CollectorRegistry()
    Envelope(FastAPI(), registry=api)
    text = "".join(generate_latest(r).decode() for r in (WorkerMetrics().registry, PollerMetrics().registry, api))
    families = re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE)
    return {name for name, _ in families} | {
        name + end for name, kind in families if kind == "histogram" for end in ("_bucket", "_sum", "_count")
    }


def named(expression: str) -> set[str]:
    return set(re.findall(r"\bhoming_\w+", expression))


def containers() -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Each pod's kind of process, its spec and its container."""
    found = []
    for path in (DEPLOY / "kubernetes").glob("*.yaml"):
        for document in documents(path):
            if document["kind"] in ("Deployment", "Job", "CronJob"):
                pod = document["spec"].get("jobTemplate", document)["spec"]["template"]["spec"]
                (container,) = pod["containers"]
                found.append((container["args"][0], pod, container))
    return found


def serving() -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Those that run until they are stopped."""
    return [one for one in containers() if "livenessProbe" in one[2]]


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.name)
def test_every_yaml_file_can_be_read(path: Path) -> None:
    assert documents(path)


def test_every_metric_in_an_alert_is_exposed() -> None:
    (rules,) = documents(DEPLOY / "prometheus" / "alerts.yaml")
    alerts = [rule for group in rules["groups"] for rule in group["rules"]]
    assert len(alerts) > 8
    for alert in alerts:
        assert named(alert["expr"]), alert["alert"]
        assert named(alert["expr"]) <= exposed(), alert["alert"]
        assert alert["annotations"]["do"]
        assert alert["expr"].count("(") == alert["expr"].count(")")


def test_alerts_on_rates_need_a_hundred_samples() -> None:
    (rules,) = documents(DEPLOY / "prometheus" / "alerts.yaml")
    (results,) = (group for group in rules["groups"] if group["name"] == "homing-results")
    for rule in results["rules"]:
        assert ">= 100" in rule["expr"]
        assert "[10m]" in rule["expr"], "a window of 600 seconds"


def test_every_metric_on_the_dashboard_is_exposed() -> None:
    dashboard = json.loads((DEPLOY / "grafana" / "homing.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            assert named(target["expr"]), panel["title"]
            assert named(target["expr"]) <= exposed(), panel["title"]


def test_commands_and_settings_exist() -> None:
    commands = {command.name or command.callback.__name__ for command in command_line.registered_commands}
    compose = documents(DEPLOY / "compose.yaml")[0]["services"]
    ours = {name: service for name, service in compose.items() if service.get("image") == "homing"}
    assert set(ours) == {"release", "api", "poller", "worker"}
    variables = {name for service in ours.values() for name in service["environment"]}
    variables |= {variable["name"] for _, _, container in containers() for variable in container["env"]}
    assert {service["command"][0] for service in ours.values()} | {kind for kind, _, _ in containers()} <= commands
    assert {name.removeprefix("HOMING_").lower() for name in variables} <= set(SETTINGS)


def test_processes_get_more_time_to_stop_than_they_need() -> None:
    lease_s = SETTINGS["lease_s"].default
    needs = {"worker": lease_s, "poller": lease_s, "api": API_DRAIN_S}
    compose = documents(DEPLOY / "compose.yaml")[0]["services"]
    for name, seconds in needs.items():
        assert int(compose[name]["stop_grace_period"].rstrip("s")) > seconds
    for name, pod, _ in containers():
        if name in needs:
            assert pod["terminationGracePeriodSeconds"] > needs[name], name


def test_probes_ask_what_the_processes_answer() -> None:
    asked = {name: str(container["livenessProbe"]) for name, _, container in serving()}
    for name, path in {"api": "/livez", "poller": "/healthz", "worker": "/healthz"}.items():
        assert path in asked[name]
    assert f":{SETTINGS['metrics_port'].default}/" in asked["poller"]
    (api,) = (container for name, _, container in containers() if name == "api")
    assert api["readinessProbe"]["httpGet"]["path"] == "/readyz"
    ports = {name: container["ports"][0]["containerPort"] for name, _, container in serving()}
    defaults = {"metrics": SETTINGS["metrics_port"].default, "api": SETTINGS["api_port"].default}
    assert ports == {"api": defaults["api"], "poller": defaults["metrics"], "worker": defaults["metrics"]}


def test_no_pod_is_root_or_takes_variables_named_after_services() -> None:
    for name, pod, container in containers():
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["enableServiceLinks"] is False, "the service homing-api would set HOMING_API_PORT"
        assert container["securityContext"]["readOnlyRootFilesystem"] is True, name
    assert re.search(r"^USER \d+", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)


def test_the_image_is_made_of_files_that_are_there_and_installs_by_hash() -> None:
    lines = (DEPLOY / "Dockerfile").read_text()
    for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", lines, re.MULTILINE):
        for source in sources.split():
            assert (DEPLOY.parent / source).exists(), source
            assert f"!{source}" in (DEPLOY.parent / ".dockerignore").read_text().splitlines(), source
    for install in re.findall(r"pip install (.+?)(?: &&|$)", lines, re.MULTILINE):
        assert install.startswith("--require-hashes -r ") or install == "--no-deps /srv/wheels/*.whl"
    (take,) = re.findall(r"^RUN sed -n '(.+)' requirements.lock", lines, re.MULTILINE)
    builder = subprocess.run(
        ["sed", "-n", take, DEPLOY.parent / "requirements.lock"], capture_output=True, text=True, check=True
    ).stdout
    assert builder in (DEPLOY.parent / "requirements.lock").read_text()
    assert pins(builder).keys() == {"setuptools"}


def pins(lock: str) -> dict[str, str]:
    """Each package's version and hashes; its marker differs with what else asks for it."""
    pin = r"^([a-z0-9-]+)(==[^ ;]+)[^\n]*\\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)"
    assert re.sub(pin, "", lock, flags=re.MULTILINE) == "", "something in it is not a pin with hashes"
    return {name: version + hashes for name, version, hashes in re.findall(pin, lock, re.MULTILINE)}


def test_the_image_installs_what_runs_in_the_versions_that_are_tested_and_nothing_of_development() -> None:
    tested = pins((DEPLOY.parent / "requirements.lock").read_text())
    runs = pins((DEPLOY / "requirements.lock").read_text())
    assert runs.items() <= tested.items()
    project = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())["project"]
    named = {
        kind: {re.match(r"[a-z0-9-]+", requirement)[0] for requirement in requirements}  # type: ignore[index]
        for kind, requirements in (("runs", project["dependencies"]), ("dev", project["optional-dependencies"]["dev"]))
    }
    assert named["runs"] <= runs.keys()
    assert not named["dev"] & runs.keys()


def test_no_secret_is_written_into_a_file() -> None:
    for path in DEPLOY.rglob("*"):
        if path.is_file():
            text = path.read_text()
            assert not re.search(r"whsec_[A-Za-z0-9+/]{8}|homing_live_\w+_", text), path
            for password in re.findall(r"postgresql://\w+:([^@\s]+)@", text):
                assert password.startswith("${"), path
