"""The images and the compose files, as far as they can be checked without Docker: each test is a thing once forgotten."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.certificates import Authority
from tests.conftest import DigitsServer
from tests.gated import write_gated
from tests.servers import ROOT, running
from twinfer_server.settings import PREFIX, ServerSettings

# The heap's own overhead, measured under floods of large requests, and what an image may take while it is decoded: RGBA
# four times over (decoded, converted, the page it is laid on, turned) and some.
OVERHEAD = 1.5
BYTES_PER_PIXEL = 20
MODELS_BYTES = 2**29


def read_compose(name: str) -> dict[str, Any]:
    # As Compose does for variables that are not set: ${NAME:-value} is its value.
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (ROOT / name).read_text(encoding="utf-8"))
    document: dict[str, Any] = yaml.safe_load(text)
    return document


COMPOSE = read_compose("docker-compose.yml")
SERVICES: dict[str, Any] = COMPOSE["services"]
SERVER = SERVICES["server"]
# One instruction per line, without comments.
DOCKERFILE = re.sub(r"^#.*\n", "", (ROOT / "service" / "Dockerfile").read_text(encoding="utf-8"), flags=re.M).replace("\\\n", " ")
STAGES = {stage.split()[3]: stage for stage in re.split(r"^(?=FROM )", DOCKERFILE, flags=re.M) if stage.startswith("FROM ")}


@pytest.fixture(scope="module")
def settings() -> ServerSettings:
    """What the server of the compose file is set to; its variables, and no others, are read as the server reads them."""
    environment = {name.removeprefix(PREFIX).lower(): value for name, value in SERVER["environment"].items()}
    return ServerSettings(**environment)


def in_bytes(size: str) -> int:
    return int(size[:-1]) * {"m": 2**20, "g": 2**30}[size[-1]]


def test_variables_are_settings_of_the_server() -> None:
    assert {name.removeprefix(PREFIX).lower() for name in SERVER["environment"]} <= set(ServerSettings.model_fields)


def test_rows_in_hand_have_time_to_be_answered(settings: ServerSettings) -> None:
    assert int(SERVER["stop_grace_period"].removesuffix("s")) >= settings.drain_seconds + 5


def test_port_that_is_published_is_the_one_that_is_listened_on(settings: ServerSettings) -> None:
    host, port = settings.listen.split(":")
    assert (host, SERVER["ports"]) == ("0.0.0.0", [f"127.0.0.1:50051:{port}"])
    assert f"TWINFER_LISTEN={settings.listen}" in STAGES["server"]
    assert SERVICES["demo"]["command"][0] == f"server:{port}"


def test_what_callers_can_make_the_server_hold_fits_into_its_memory(settings: ServerSettings) -> None:
    messages = settings.max_concurrent_calls * settings.max_message_bytes * OVERHEAD
    images = settings.decode_threads * settings.max_image_pixels * BYTES_PER_PIXEL
    assert settings.decode_threads > 0, "one per core would be any number"
    assert messages + images + MODELS_BYTES < in_bytes(SERVER["mem_limit"])


def test_server_by_tls_is_the_same_server_with_certificates_that_are_made_first() -> None:
    secured, made = SERVICES["server-tls"], SERVICES["certificates"]
    added = {"TWINFER_TLS_CERT": "/certificates/server.pem", "TWINFER_TLS_KEY": "/certificates/server.key"}
    assert secured["environment"] == SERVER["environment"] | added
    other = ("environment", "profiles", "ports", "volumes", "depends_on")
    assert {key: secured[key] for key in secured if key not in other} == {key: SERVER[key] for key in SERVER if key not in other}
    assert secured["depends_on"] == {"certificates": {"condition": "service_completed_successfully"}}
    assert secured["ports"] == ["127.0.0.1:50443:50051"]
    assert secured["volumes"] == [f"{made['volumes'][0]}:ro"]
    assert made["command"][0] == "/certificates"
    assert {"localhost", "server-tls"} <= set(made["command"]), "what clients call the server"
    assert SERVICES["demo-tls"]["command"][:3] == ["infer", "--server", "server-tls:50051"]
    assert f"COPY deploy/certificates.sh {made['entrypoint'][1]}" in STAGES["server"]
    assert "install -d -o 10001 -g 10001 /certificates" in STAGES["server"], "or its volume belongs to root"


def test_certificates_and_keys_of_ones_own_are_secrets() -> None:
    document = read_compose("docker-compose.secrets.yml")
    server = document["services"]["server"]
    assert set(server["secrets"]) == set(document["secrets"])
    assert {f"/run/secrets/{name}" for name in server["secrets"]} == set(server["environment"].values())
    assert {name.removeprefix(PREFIX).lower() for name in server["environment"]} <= set(ServerSettings.model_fields)
    assert document["secrets"]["server.key"] == {"file": "./secrets/server.key"}


@pytest.mark.parametrize("name", SERVICES)
def test_containers_have_what_they_need_and_no_more(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"]
    assert service["init"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert in_bytes(service["mem_limit"]) > 0
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


@pytest.mark.parametrize("name", [name for name, service in SERVICES.items() if "build" in service])
def test_images_that_are_built_run_as_a_user_without_rights(name: str) -> None:
    service = SERVICES[name]
    assert service["build"]["target"] in STAGES
    assert re.findall(r"^USER (.*)$", STAGES[service["build"]["target"]], flags=re.M) == ["10001:10001"]


def test_gpu_file_adds_one_gpu_to_the_same_server() -> None:
    services = read_compose("docker-compose.gpu.yml")["services"]
    assert set(services) == {"server"}
    (gpu,) = services["server"]["deploy"]["resources"]["reservations"]["devices"]
    assert (gpu["driver"], gpu["count"]) == ("nvidia", 1)
    assert {"gpu", "compute"} <= set(gpu["capabilities"])
    assert in_bytes(services["server"]["mem_limit"]) >= in_bytes(SERVER["mem_limit"])


def test_default_image_is_the_server() -> None:
    assert list(STAGES)[-1] == SERVER["build"]["target"] == "server"


def test_nothing_but_one_base_image_is_pulled() -> None:
    bases = {stage.split()[1] for stage in STAGES.values()}
    assert bases - set(STAGES) == {"python:3.11-slim"}
    assert not re.match(r"#\s*syntax\s*=", (ROOT / "service" / "Dockerfile").read_text(encoding="utf-8"))


def test_what_observes_the_server_is_pulled_by_version_and_only_where_it_is_asked_for(settings: ServerSettings) -> None:
    pulled = {name: service for name, service in SERVICES.items() if "build" not in service}
    assert {name: service["profiles"] for name, service in pulled.items()} == {"prometheus": ["observe"], "grafana": ["observe"]}
    for service in pulled.values():
        assert re.fullmatch(r"[\w/-]+:v?\d+\.\d+\.\d+", service["image"])
        sources = [volume.split(":")[0] for volume in service["volumes"]]
        assert all((ROOT / source).is_dir() if source.startswith(".") else source in COMPOSE["volumes"] for source in sources)
    scraped = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"]
    port = settings.metrics_listen.rpartition(":")[2]
    assert [config["targets"] for job in scraped for config in job["static_configs"]] == [[f"server:{port}"]]


def test_packages_are_the_pinned_ones_and_need_no_compiler() -> None:
    assert not re.search(r"\b(apt-get|apk|gcc|g\+\+|build-essential)\b", DOCKERFILE)
    # torch's own step takes the pins too, unless its index has other versions of what it needs.
    otherwise = re.findall(r"else set -- (.*?); fi", DOCKERFILE)[0]
    without_index = DOCKERFILE.replace('"$@"', otherwise)
    installs = re.findall(r"\bpip .*?\binstall\b[^&\n]*", without_index)
    assert len(installs) == 6
    assert [install for install in installs if "--constraint constraints.txt" not in install and "--no-deps" not in install] == []


def test_signals_reach_the_server() -> None:
    for form in re.findall(r"^\s*(?:ENTRYPOINT|CMD) (.*)$", DOCKERFILE, flags=re.M):
        assert isinstance(json.loads(form), list), "a string would put a shell in between, which hands no signal on"


def test_files_that_are_copied_are_there() -> None:
    copies = re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, flags=re.M)
    assert copies
    for source in (source for copy in copies for source in copy.split()[:-1]):
        assert (ROOT / source).exists(), source
    for word in SERVICES["demo"]["entrypoint"] + SERVICES["demo"]["command"] + SERVICES["demo-tls"]["command"]:
        assert "/" not in word or (ROOT / word).is_file(), word


def run_python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def health_check() -> str:
    (form,) = re.findall(r"^HEALTHCHECK .*?CMD (.*)$", STAGES["server"], flags=re.M)
    python, _, code = json.loads(form)
    assert python == "python"
    return str(code)


def test_health_check_passes_on_a_server_that_serves(health_check: str, digits_server: DigitsServer) -> None:
    assert run_python("-c", health_check, TWINFER_LISTEN=digits_server.address).returncode == 0


def test_health_check_fails_where_nobody_serves(health_check: str, tmp_path: Path) -> None:
    assert run_python("-c", health_check, TWINFER_LISTEN=f"unix:{tmp_path / 'nobody'}").returncode == 1


def test_health_check_passes_on_a_server_that_speaks_tls(health_check: str, tmp_path: Path, authority: Authority) -> None:
    folder = write_gated(tmp_path / "gated")
    with running(folder, trust_code=True, health_listen="127.0.0.1:0", **authority.serve(asks_clients=True)) as server:
        variables = {"TWINFER_LISTEN": server.address, "TWINFER_HEALTH_LISTEN": server.health_address}
        assert run_python("-c", health_check, **variables).returncode == 0
    assert re.search(r"^ENV .*TWINFER_HEALTH_LISTEN=127\.0\.0\.1:\d+$", STAGES["server"], flags=re.M)


@pytest.mark.parametrize("stage", ["server", "client"])
def test_image_lists_what_is_installed_in_it(stage: str) -> None:
    (command,) = re.findall(r"source=service/sbom.py,target=(\S+) (\S+) (\S+) > /opt/twinfer/sbom.cdx.json$", STAGES[stage], re.M)
    assert command == ("/sbom.py", "/opt/twinfer/bin/python", "/sbom.py")
    assert STAGES[stage].index("/wheel/*.whl") < STAGES[stage].index("sbom.cdx.json"), "twinfer itself is installed before"


def test_list_of_what_is_installed_has_every_distribution_once() -> None:
    done = run_python("service/sbom.py")
    assert done.returncode == 0, done.stderr
    bill = json.loads(done.stdout)
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.5")
    assert (bill["metadata"]["component"]["name"], bill["metadata"]["component"]["type"]) == ("twinfer", "application")
    listed = {(each["name"], each["version"], each["purl"]) for each in [*bill["components"], bill["metadata"]["component"]]}
    assert len(listed) == len(bill["components"]) + 1
    names = {(re.sub(r"[-_.]+", "-", each.name).lower(), each.version) for each in distributions()}
    assert listed == {(name, version, f"pkg:pypi/{name}@{version}") for name, version in names}
    needs = {each["ref"].split("@")[0]: {need.split("@")[0] for need in each["dependsOn"]} for each in bill["dependencies"]}
    assert {"pkg:pypi/grpcio", "pkg:pypi/torch", "pkg:pypi/typer"} <= needs["pkg:pypi/twinfer"]
    assert "pkg:pypi/mypy" not in needs["pkg:pypi/uvloop"], "that is its own tests'"
    licences = {each["name"]: each["licenses"][0]["license"]["name"] for each in bill["components"] if "licenses" in each}
    assert licences["pydantic"] == "MIT"


def test_demo_prints_what_the_members_say_and_what_they_say_together(digits_server: DigitsServer) -> None:
    (_, example), (_, *question) = SERVICES["demo"]["entrypoint"], SERVICES["demo"]["command"]
    done = run_python(example, digits_server.address, *question)
    assert done.returncode == 0, done.stderr
    said = [line.split()[0] for line in done.stdout.splitlines()]
    assert said[:3] == ["vision", "language", "together"]
    assert done.stdout.splitlines()[2].split()[1] == "seven"


def test_demo_says_why_it_has_no_answer(digits_server: DigitsServer) -> None:
    done = run_python(SERVICES["demo"]["entrypoint"][1], digits_server.address, "README.md", "two")
    assert (done.returncode, done.stdout) == (1, "")
    assert "no image" in done.stderr
