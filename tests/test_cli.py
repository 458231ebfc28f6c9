"""The command line: what it prints, what it exits with, and what it does without."""

import base64
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

from twinfer.cli import app
from twinfer.cli.bench import MODULES as BENCH_MODULES
from twinfer.cli.options import seconds
from twinfer.cli.report import plain
from twinfer.cli.server import FIT_MODULES, INSTALL, INSTALL_FIT, MODULES
from twinfer.v1 import ensemble_service_pb2, ensemble_service_pb2_grpc, error_pb2

ANSWER = ensemble_service_pb2.InferResponse(
    ensemble="digits",
    version=3,
    prediction={
        "classification": {
            "classes": [
                {"index": 5, "label": "five", "probability": 0.75},
                {"index": 6, "label": "six", "probability": 0.25},
            ]
        }
    },
    members=[
        {
            "name": "vision",
            "state": "MEMBER_STATE_OK",
            "weight": 1.0,
            "device_time": {"nanos": 1_500_000},
            "prediction": {"classification": {"classes": [{"index": 6, "label": "six", "probability": 0.5}]}},
        },
        {
            "name": "language",
            "state": "MEMBER_STATE_LATE",
            "error": {"code": 4, "reason": "REASON_MEMBER_LATE", "text": "the lane [was] stuck"},
        },
    ],
    degraded=True,
    disagreement=0.125,
    timings={"total": {"nanos": 2_000_000}, "batch_size": 4, "overlap_ratio": 1.5},
)

EXPLAINED = ensemble_service_pb2.InferResponse(
    ensemble="digits",
    prediction={"multi_label": {"labels": [{"index": 1, "label": "bee", "probability": 0.75}]}},
    members=[
        {
            "name": name,
            "state": "MEMBER_STATE_OK",
            "weight": weight,
            "prediction": {"multi_label": {"labels": [{"index": 1, "label": "bee", "probability": belief}]}},
            "attribution": {
                "delta": moved,
                "without": {"multi_label": {"labels": [{"index": 1, "label": "bee", "probability": without}]}},
            },
        }
        for name, weight, belief, moved, without in (("vision", 0.25, 0.375, 0.125, 0.875), ("language", 0.75, 0.875, 0.375, 0.375))
    ],
    fusion_version=7,
)
TENSOR = ensemble_service_pb2.InferResponse(
    prediction={"tensor": {"dtype": "DATA_TYPE_FP32", "shape": [2], "data": np.array([0.5, -2.0], "<f4").tobytes()}}
)

ENSEMBLE: dict[str, Any] = {
    "name": "digits",
    "version": 3,
    "task": "TASK_CLASSIFICATION",
    "labels": ["zero", "one"],
    "inputs": [
        {"name": "image", "kind": "image", "dtype": "DATA_TYPE_FP32", "shape": [1, 8, 8], "members": ["vision"]},
        {"name": "text", "kind": "text", "dtype": "DATA_TYPE_INT64", "shape": [-1], "optional": True, "max_tokens": 32},
    ],
    "members": [
        {
            "name": "vision",
            "loader": "pt2",
            "precision": "fp32",
            "device": "cpu",
            "parameter_bytes": 2_660,
            "breaker_state": "BREAKER_STATE_DISABLED",
            "breaker_reason": "since 2031: an operator",
        }
    ],
    "fusion": {"method": "log_opinion_pool", "weights": {"vision": 0.25, "language": 0.75}},
    "policy": "best_effort",
    "limits": {"max_message_bytes": 33_554_432, "default_timeout": {"seconds": 30}},
}


class DigitsService(ensemble_service_pb2_grpc.EnsembleServiceServicer):
    """Gives one answer to everything but the text "bad", and remembers what it was asked."""

    def __init__(self) -> None:
        self.requests: list[ensemble_service_pb2.InferRequest] = []
        self.address = ""
        self.answer = ANSWER

    def Infer(self, request: ensemble_service_pb2.InferRequest, context: grpc.ServicerContext) -> Any:
        self.requests.append(request)
        if request.inputs["text"].text == "bad":
            error = error_pb2.Error(code=3, reason="REASON_INVALID_INPUT", stage="STAGE_DECODE", text="inputs['text']: no")
            context.set_trailing_metadata((("twinfer-error-bin", error.SerializeToString()),))
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, error.text)
        return self.answer

    def GetEnsemble(self, request: ensemble_service_pb2.GetEnsembleRequest, context: grpc.ServicerContext) -> Any:
        return ensemble_service_pb2.GetEnsembleResponse(ensemble=ENSEMBLE)


@pytest.fixture
def service() -> Iterator[DigitsService]:
    served = DigitsService()
    server = grpc.server(ThreadPoolExecutor(2))
    ensemble_service_pb2_grpc.add_EnsembleServiceServicer_to_server(served, server)
    served.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield served
    server.stop(None).wait()


def run(*arguments: str, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(app, arguments, input=stdin, env={"COLUMNS": "160", "NO_COLOR": "1"})


# --- infer ------------------------------------------------------------------------------------------------------------


def test_infer_sends_the_image_the_text_and_the_options(service: DigitsService, tmp_path: Path) -> None:
    (tmp_path / "five.png").write_bytes(b"an image")
    options = ["--top-k", "2", "--policy", "require_all", "--timeout", "5s", "--members"]
    result = run("infer", "--image", str(tmp_path / "five.png"), "--text", "fve", "--server", service.address, *options)
    assert result.exit_code == 0, result.output
    assert service.requests == [
        ensemble_service_pb2.InferRequest(
            inputs={
                "image": ensemble_service_pb2.Input(image=b"an image"),
                "text": ensemble_service_pb2.Input(text="fve"),
            },
            options={"policy": "POLICY_REQUIRE_ALL", "top_k": 2, "member_predictions": True},
        )
    ]


def test_infer_prints_an_answer_for_people(service: DigitsService) -> None:
    result = run("infer", "--text", "fve", "--server", service.address, "--members")
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert lines[:2] == ["five 0.7500", "degraded: language LATE"]
    assert "six 0.2500" in lines
    assert "vision OK 1.000 1.50 ms six 0.5000" in lines
    assert "language LATE 0.000 the lane [was] stuck" in lines
    assert lines[-3:] == [
        "disagreement 0.125",
        "2.00 ms on the server: decode 0.00, queue 0.00, device 0.00; rows in the flight: 4; overlap 1.50",
        "digits version 3, fusion version 0",
    ]


def test_infer_prints_one_json_object_for_programs(service: DigitsService) -> None:
    result = run("infer", "--text", "fve", "--server", service.address, "--json")
    answer = json.loads(result.stdout)
    assert (answer["label"], answer["probability"], answer["version"], answer["degraded"]) == ("five", 0.75, 3, True)
    assert answer["members"][0]["state"] == "OK"
    assert answer["members"][0]["device_time_ms"] == 1.5
    assert answer["members"][1]["error"]["reason"] == "MEMBER_LATE"
    assert answer["timings"] == {"total_ms": 2.0, "batch_size": 4, "overlap_ratio": 1.5, "execution": ""}
    assert result.stderr == ""


def test_infer_explains_the_answer_member_by_member(service: DigitsService) -> None:
    service.answer = EXPLAINED
    result = run("infer", "--text", "fve", "--server", service.address, "--explain")
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert service.requests[0].options.explain
    assert lines[0] == "bee 0.7500"
    assert "member state weight device says moved without it" in lines
    assert "vision OK 0.250 bee 0.3750 0.1250 bee 0.8750" in lines
    assert "language OK 0.750 bee 0.8750 0.3750 bee 0.3750" in lines
    assert lines[-1] == "digits version 0, fusion version 7"


def test_an_explained_answer_is_json_too(service: DigitsService) -> None:
    service.answer = EXPLAINED
    answer = json.loads(run("infer", "--text", "fve", "--server", service.address, "--explain", "--json").stdout)
    assert answer["fusion_version"] == 7
    assert answer["members"][0]["attribution"]["delta"] == 0.125
    assert answer["members"][0]["attribution"]["without"]["multi_label"]["labels"][0]["probability"] == 0.875


def test_a_tensor_is_base64_for_programs_and_its_first_numbers_for_people(service: DigitsService) -> None:
    service.answer = TENSOR
    answer = json.loads(run("infer", "--text", "fve", "--server", service.address, "--json").stdout)
    tensor = answer["prediction"]["tensor"]
    assert (tensor["dtype"], tensor["shape"]) == ("FP32", [2])
    assert np.frombuffer(base64.b64decode(tensor["data"]), "<f4").tolist() == [0.5, -2.0]
    assert run("infer", "--text", "fve", "--server", service.address).stdout.startswith("tensor [2]: 0.5000, -2.0000\n")


def test_infer_reads_the_image_from_stdin(service: DigitsService) -> None:
    assert run("infer", "--image", "-", "--server", service.address, stdin=b"piped \xff").exit_code == 0
    assert service.requests[0].inputs["image"].image == b"piped \xff"


def test_infer_takes_any_input_by_its_name(service: DigitsService, tmp_path: Path) -> None:
    np.save(tmp_path / "pixels.npy", np.arange(4, dtype=np.uint8))
    (tmp_path / "left.png").write_bytes(b"left")
    named = ["title=a=b", f"left=@{tmp_path / 'left.png'}", f"pixels=@{tmp_path / 'pixels.npy'}"]
    inputs = [argument for item in named for argument in ("--input", item)]
    assert run("infer", *inputs, "--server", service.address).exit_code == 0
    sent = service.requests[0].inputs
    assert (sent["title"].text, sent["left"].image, sent["pixels"].tensor.data) == ("a=b", b"left", b"\0\1\2\3")


# --- failures ---------------------------------------------------------------------------------------------------------


def test_a_failed_call_exits_with_1_and_says_why(service: DigitsService) -> None:
    result = run("infer", "--text", "bad", "--server", service.address)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "INVALID_ARGUMENT (INVALID_INPUT): inputs['text']: no\n"


def test_a_failed_call_is_json_too(service: DigitsService) -> None:
    result = run("infer", "--text", "bad", "--server", service.address, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout) == {
        "error": {
            "code": "INVALID_ARGUMENT",
            "reason": "INVALID_INPUT",
            "member": "",
            "stage": "DECODE",
            "text": "inputs['text']: no",
        }
    }
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "there is no input"),
        (["--image", "absent.png"], "absent.png: No such file"),
        (["--input", "fve"], "'fve' is not NAME=VALUE"),
        (["--input", "left=@absent.png"], "absent.png: No such file"),
        (["--text", "a", "--input", "text=b"], "given twice"),
        (["--text", "a", "--policy", "any"], "any"),
        (["--text", "a", "--top-k", "0"], "'--top-k'"),
        (["--text", "a", "--top-k", "9999999999"], "9999999999"),
        (["--text", "a", "--timeout", "soon"], "'soon' is not a span of time"),
        (["--text", "\udcff"], "surrogates not allowed"),
        (["--nonsense"], "--nonsense"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_usage_exits_with_2_and_says_what_is_wrong(arguments: list[str], said: str) -> None:
    result = run("infer", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in " ".join(result.stderr.replace("│", " ").split())


@pytest.mark.parametrize(("text", "span"), [("5s", 5), ("250ms", 0.25), ("2m", 120), ("1.5", 1.5)])
def test_a_span_is_read_with_its_unit(text: str, span: float) -> None:
    assert seconds(text) == span


@pytest.mark.parametrize("text", ["", "s", "-1s", "0", "nan", "inf", "5h", "1e999s"])
def test_what_is_no_span_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="is not a span of time; allowed: 5s"):
        seconds(text)


# --- describe ---------------------------------------------------------------------------------------------------------


def test_describe_prints_the_ensemble_for_people(service: DigitsService) -> None:
    result = run("describe", "--server", service.address)
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert lines[:3] == ["digits version 3", "classification into 2: zero, one", "policy best_effort"]
    assert "image image vision FP32 [1, 8, 8]" in lines
    assert "text text INT64 [-1] may be left out, at most 32 tokens" in lines
    assert "vision pt2 fp32 cpu 2.7 kB" in lines
    assert "vision is switched disabled, since 2031: an operator" in lines
    assert "fusion log_opinion_pool version 0; weights language 0.750, vision 0.250" in lines
    assert "max_message_bytes 33,554,432" in lines
    assert "32 16 lanes lanes 0.25, serial 0.40 vision 0.20 1.60" in lines


def test_describe_prints_one_json_object_for_programs(service: DigitsService) -> None:
    described = json.loads(run("describe", "--server", service.address, "--json").stdout)
    assert described["version"] == 3  # a number: protobuf's own JSON would make it a text
    assert described["task"] == "CLASSIFICATION"
    assert described["inputs"][0]["dtype"] == "FP32"
    assert described["fusion"]["weights"] == {"language": 0.75, "vision": 0.25}
    assert described["limits"]["default_timeout_ms"] == 30_000


def test_describe_without_a_server_fails_like_any_call(service: DigitsService) -> None:
    result = run("describe", "--server", "127.0.0.1:1", "--timeout", "200ms", "--json")
    assert (result.exit_code, json.loads(result.stdout)["error"]["reason"]) == (1, "UNSPECIFIED")


def test_an_enum_number_that_only_a_newer_server_knows_stays_a_number() -> None:
    assert plain(error_pb2.Error(reason=99))["reason"] == 99  # type: ignore[arg-type]


# --- the other three --------------------------------------------------------------------------------------------------


def python(program: str, *arguments: str, path: Path | None = None, flags: tuple[str, ...] = ()) -> Any:
    """Run a program with this interpreter, a folder first on its path."""
    search = os.pathsep.join([str(path), *sys.path] if path else sys.path)
    command = [sys.executable, "-W", "error", *flags, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": search})


WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
from twinfer.cli import main
main()
"""


def test_all_commands_are_shown_without_the_server() -> None:
    done = python(WITHOUT.format(absent={"twinfer_server", "torch", "numpy", "PIL"}), "--help")
    assert (done.returncode, done.stderr) == (0, "")
    commands = ("infer", "describe", "bench", "timeline", "member", "serve", "validate", "demo", "fit")
    assert all(f" {command} " in done.stdout for command in commands)


@pytest.mark.parametrize("command", ["serve", "validate", "demo"])
def test_without_the_server_its_commands_say_how_to_install_it(command: str) -> None:
    done = python(WITHOUT.format(absent={"twinfer_server"}), command, "folder", "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].strip() == INSTALL == "pip install 'twinfer[server]'"


def service_package(folder: Path, commands: str) -> Path:
    """Write a stand-in for the service package: what is shown here is the way to it."""
    (folder / "twinfer_server").mkdir()
    (folder / "twinfer_server" / "__init__.py").write_text("")
    (folder / "twinfer_server" / "commands.py").write_text(commands)
    return folder


def test_without_torch_they_say_so_too(tmp_path: Path) -> None:
    package = service_package(tmp_path, "import torch")
    done = python(WITHOUT.format(absent={"torch"}), "serve", path=package)
    assert done.returncode == 2
    assert done.stderr == f"twinfer serve needs torch, which is not installed. Install the server:\n  {INSTALL}\n"


def test_a_missing_module_of_the_users_own_is_not_blamed_on_the_extra(tmp_path: Path) -> None:
    package = service_package(tmp_path, "def main(arguments): import the_users_model")
    done = python("from twinfer.cli import main; main()", "serve", path=package)
    assert done.returncode == 1
    assert "No module named 'the_users_model'" in done.stderr
    assert INSTALL not in done.stderr


def test_arguments_reach_the_server_untouched_and_its_status_comes_back(tmp_path: Path) -> None:
    package = service_package(tmp_path, "def main(arguments): print(arguments); return 3")
    arguments = ["demo", "folder", "--listen", "127.0.0.1:0", "--json", "-x", "--help"]
    done = python("from twinfer.cli import main; main()", *arguments, path=package)
    assert (done.returncode, done.stdout, done.stderr) == (3, f"{arguments}\n", "")


def test_every_module_of_the_extra_is_known() -> None:
    pyproject = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    imported_as = {
        "grpcio-health-checking": "grpc_health",
        "grpcio-reflection": "grpc_reflection",
        "hdrhistogram": "hdrh",
        "pillow": "PIL",
    }
    extras = pyproject["project"]["optional-dependencies"]
    names = {extra: {line.partition(">")[0] for line in extras[extra]} for extra in ("server", "fit", "bench")}
    modules = {extra: {imported_as.get(name, name.replace("-", "_")) for name in names[extra]} for extra in names}
    assert modules["server"] | {"twinfer_server"} == MODULES
    assert modules["fit"] - {"twinfer[server]"} | MODULES == FIT_MODULES
    assert modules["bench"] - {"uvloop"} == set(BENCH_MODULES)


def test_without_a_module_of_its_extra_fit_says_how_to_install_that(tmp_path: Path) -> None:
    package = service_package(tmp_path, "import scipy")
    done = python(WITHOUT.format(absent={"scipy"}), "fit", path=package)
    assert done.returncode == 2
    assert done.stderr == f"twinfer fit needs scipy, which is not installed. Install it:\n  {INSTALL_FIT}\n"
    assert INSTALL_FIT == "pip install 'twinfer[fit]'"


def test_infer_loads_nothing_heavy(service: DigitsService) -> None:
    arguments = ["infer", "--text", "fve", "--server", service.address, "--json"]
    done = python("from twinfer.cli import main; main()", *arguments, flags=("-X", "importtime"))
    assert json.loads(done.stdout)["label"] == "five"
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert {"grpc", "typer", "twinfer"} <= loaded
    assert loaded & {"torch", "numpy", "PIL", "rich", "twinfer_server"} == set()


def test_version_is_the_packages_own() -> None:
    pyproject = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    assert run("--version").stdout == f"{pyproject['project']['version']}\n"
