"""The command line: what it prints, what it exits with, and what it does without."""

import base64
import importlib.util
import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

from tests.scripted import ScriptedService
from tests.without import without
from twinfer.cli import app
from twinfer.cli.extras import IMPORTED_AS, modules_of
from twinfer.cli.options import seconds
from twinfer.cli.report import plain
from twinfer.cli.server import COMMANDS, SERVICE_MODULE
from twinfer.v1 import ensemble_service_pb2 as pb
from twinfer.v1 import error_pb2

PYPROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())


def bee(chance: float) -> Any:
    """Make the prediction of one label."""
    return {"multi_label": {"labels": [{"index": 1, "label": "bee", "probability": chance}]}}


EXPLAINED = pb.InferResponse(
    ensemble="digits",
    prediction=bee(0.75),
    members=[
        {
            "name": name, "state": "MEMBER_STATE_OK", "weight": weight, "prediction": bee(chance),
            "attribution": {"delta": delta, "without": bee(rest)},
        }
        for name, weight, chance, delta, rest in (("vision", 0.25, 0.375, 0.125, 0.875), ("language", 0.75, 0.875, 0.375, 0.375))
    ],
    fusion_version=7,
)  # fmt: skip
TENSOR = pb.InferResponse(
    prediction={"tensor": {"dtype": "DATA_TYPE_FP32", "shape": [2], "data": np.array([0.5, -2.0], "<f4").tobytes()}}
)


def run(*arguments: str, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(app, arguments, input=stdin, env={"COLUMNS": "160", "NO_COLOR": "1"})


def ask(service: ScriptedService, *options: str, text: str = "fve") -> Result:
    """Run `twinfer infer` with a text."""
    return run("infer", "--text", text, "--server", service.address, *options)


def lines_of(result: Result) -> list[str]:
    """Return what was printed, line by line, with single spaces."""
    return [" ".join(line.split()) for line in result.stdout.splitlines()]


# --- infer ------------------------------------------------------------------------------------------------------------


def test_infer_sends_the_image_the_text_and_the_options(service: ScriptedService, tmp_path: Path) -> None:
    (tmp_path / "five.png").write_bytes(b"an image")
    options = ["--top-k", "2", "--policy", "require_all", "--timeout", "5s", "--members"]
    result = ask(service, "--image", str(tmp_path / "five.png"), *options)
    assert result.exit_code == 0, result.output
    inputs = {"image": pb.Input(image=b"an image"), "text": pb.Input(text="fve")}
    sent = {"policy": "POLICY_REQUIRE_ALL", "top_k": 2, "member_predictions": True}
    assert service.requests == [pb.InferRequest(inputs=inputs, options=sent)]


def test_infer_prints_an_answer_for_people(service: ScriptedService) -> None:
    lines = lines_of(ask(service, "--members"))
    assert lines[:2] == ["five 0.7500", "degraded: language LATE"]
    assert "six 0.2500" in lines
    assert "vision OK 1.000 1.50 ms six 0.5000" in lines
    assert "language LATE 0.000 the stream [was] stuck" in lines
    assert lines[-3:] == [
        "disagreement 0.125",
        "2.00 ms on the server: decode 0.00, queue 0.00, device 0.00; batch of 4, execution streams, overlap ratio 1.50",
        "digits version 3, fusion version 7",
    ]


def test_infer_prints_one_json_object_for_programs(service: ScriptedService) -> None:
    result = ask(service, "--json")
    answer = json.loads(result.stdout)
    assert (answer["label"], answer["probability"], answer["version"], answer["degraded"]) == ("five", 0.75, 3, True)
    assert answer["members"][0]["state"] == "OK"
    assert answer["members"][0]["device_time_ms"] == 1.5
    assert answer["members"][1]["error"]["reason"] == "MEMBER_LATE"
    assert answer["timings"] == {
        "total_ms": 2.0, "batch_size": 4, "overlap_ratio": 1.5, "execution": "streams", "buffer_wait_ms": 0.5
    }  # fmt: skip
    assert result.stderr == ""


def test_infer_explains_the_answer_member_by_member_and_in_json(service: ScriptedService) -> None:
    service.script = lambda request, context: EXPLAINED
    lines = lines_of(ask(service, "--explain"))
    assert service.requests[0].options.explain
    assert lines[0] == "bee 0.7500"
    assert "member state weight device says delta without it" in lines
    assert "vision OK 0.250 bee 0.3750 0.1250 bee 0.8750" in lines
    assert "language OK 0.750 bee 0.8750 0.3750 bee 0.3750" in lines
    assert lines[-1] == "digits version 0, fusion version 7"
    answer = json.loads(ask(service, "--explain", "--json").stdout)
    assert answer["fusion_version"] == 7
    assert answer["members"][0]["attribution"]["delta"] == 0.125
    assert answer["members"][0]["attribution"]["without"]["multi_label"]["labels"][0]["probability"] == 0.875


def test_a_tensor_is_base64_for_programs_and_its_first_numbers_for_people(service: ScriptedService) -> None:
    service.script = lambda request, context: TENSOR
    answer = json.loads(ask(service, "--json").stdout)
    tensor = answer["prediction"]["tensor"]
    assert (tensor["dtype"], tensor["shape"]) == ("FP32", [2])
    assert np.frombuffer(base64.b64decode(tensor["data"]), "<f4").tolist() == [0.5, -2.0]
    assert ask(service).stdout.startswith("tensor [2]: 0.5000, -2.0000\n")


def test_infer_takes_any_input_by_its_name_and_the_image_from_stdin_too(service: ScriptedService, tmp_path: Path) -> None:
    np.save(tmp_path / "pixels.npy", np.arange(4, dtype=np.uint8))
    (tmp_path / "left.png").write_bytes(b"left")
    named = ["title=a=b", f"left=@{tmp_path / 'left.png'}", f"pixels=@{tmp_path / 'pixels.npy'}"]
    inputs = [argument for item in named for argument in ("--input", item)]
    assert run("infer", *inputs, "--image", "-", "--server", service.address, stdin=b"piped \xff").exit_code == 0
    sent = service.requests[0].inputs
    assert (sent["title"].text, sent["left"].image, sent["pixels"].tensor.data) == ("a=b", b"left", b"\0\1\2\3")
    assert sent["image"].image == b"piped \xff"


# --- failures ---------------------------------------------------------------------------------------------------------


def test_a_failed_call_exits_with_1_and_says_why_in_words_or_in_json(service: ScriptedService) -> None:
    result = ask(service, text="bad")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "INVALID_ARGUMENT (INVALID_INPUT): inputs['text']: no\n"
    result = ask(service, "--json", text="bad")
    error = {"code": "INVALID_ARGUMENT", "reason": "INVALID_INPUT", "member": "", "stage": "DECODE", "text": "inputs['text']: no"}
    assert (result.exit_code, json.loads(result.stdout), result.stderr) == (1, {"error": error}, "")


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


def test_a_span_is_read_with_its_unit_and_what_is_none_is_refused() -> None:
    assert [seconds(text) for text in ("5s", "250ms", "2m", "1.5")] == [5, 0.25, 120, 1.5]
    for text in ("", "s", "-1s", "0", "nan", "inf", "5h", "1e999s"):
        with pytest.raises(typer.BadParameter, match="is not a span of time; allowed: 5s"):
            seconds(text)


# --- describe ---------------------------------------------------------------------------------------------------------


def test_describe_prints_the_ensemble_for_people(service: ScriptedService) -> None:
    lines = lines_of(run("describe", "--server", service.address))
    assert lines[:4] == ["digits version 3", "classification into 2: zero, one", "policy best_effort", "execution serial"]
    assert "image image vision FP32 [1, 8, 8]" in lines
    assert "text text INT64 [-1] may be left out, at most 32 tokens" in lines
    assert "vision pt2 fp32 cpu 2.7 kB" in lines
    assert "vision is DISABLED, since 2031: an operator" in lines
    assert "fusion log_opinion_pool version 7; weights language 0.750, vision 0.250" in lines
    assert "max_message_bytes 33,554,432" in lines
    assert "cascade: vision answers alone from a confidence of 0.7500" in lines
    assert "vision 1 0.25 ms" in lines
    assert "vision 32 16 1.60 ms" in lines


def test_describe_prints_one_json_object_for_programs(service: ScriptedService) -> None:
    described = json.loads(run("describe", "--server", service.address, "--json").stdout)
    assert described["version"] == 3  # a number: protobuf's own JSON would make it a text
    assert described["task"] == "CLASSIFICATION"
    assert described["inputs"][0]["dtype"] == "FP32"
    assert described["fusion"]["weights"] == {"language": 0.75, "vision": 0.25}
    assert described["limits"]["default_timeout_ms"] == 30_000
    assert described["members"][0]["solo_latencies"][1] == {"samples": 32, "tokens": 16, "latency_ms": 1.6}


def test_describe_without_a_server_fails_like_any_call(service: ScriptedService) -> None:
    result = run("describe", "--server", "127.0.0.1:1", "--timeout", "200ms", "--json")
    assert (result.exit_code, json.loads(result.stdout)["error"]["reason"]) == (1, "UNSPECIFIED")


def test_an_enum_number_that_only_a_newer_server_knows_stays_a_number() -> None:
    assert plain(error_pb2.Error(reason=99))["reason"] == 99  # type: ignore[arg-type]


# --- commands of the service ------------------------------------------------------------------------------------------


def service_package(folder: Path, content: str) -> Path:
    """Write a stand-in for the service package: what is shown here is the way to it."""
    module = folder / f"{SERVICE_MODULE.replace('.', '/')}.py"
    module.parent.mkdir()
    (module.parent / "__init__.py").write_text("")
    module.write_text(content)
    return folder


def test_all_commands_are_shown_without_the_server() -> None:
    done = without({"twinfer_server", "torch", "numpy", "PIL"}, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    commands = ("infer", "describe", "bench", "timeline", "fusion", "member", *COMMANDS)
    assert all(f" {command} " in done.stdout for command in commands)


@pytest.mark.parametrize(("command", "extra"), [("serve", "server"), ("validate", "server"), ("demo", "server"), ("fit", "fit")])
def test_without_the_server_its_commands_say_how_to_install_it(command: str, extra: str) -> None:
    done = without({"twinfer_server"}, command, "folder", "--json")
    assert (done.returncode, done.stdout) == (2, "")
    said = f"twinfer {command} needs twinfer_server, which is not installed. Install it:\n  pip install 'twinfer[{extra}]'\n"
    assert done.stderr == said


def test_a_missing_module_of_the_extra_is_named(tmp_path: Path) -> None:
    done = without({"torch"}, "serve", path=service_package(tmp_path, "import torch"))
    said = "twinfer serve needs torch, which is not installed. Install it:\n  pip install 'twinfer[server]'\n"
    assert (done.returncode, done.stderr) == (2, said)


def test_a_missing_module_of_the_users_own_is_not_blamed_on_the_extra(tmp_path: Path) -> None:
    done = without((), "serve", path=service_package(tmp_path, "def main(arguments): import the_users_model"))
    assert done.returncode == 1
    assert "No module named 'the_users_model'" in done.stderr
    assert "pip install" not in done.stderr


def test_arguments_reach_the_server_untouched_and_its_status_comes_back(tmp_path: Path) -> None:
    package = service_package(tmp_path, "def main(arguments): print(arguments); return 3")
    arguments = ["demo", "folder", "--listen", "127.0.0.1:0", "--json", "-x", "--help"]
    done = without((), *arguments, path=package)
    assert (done.returncode, done.stdout, done.stderr) == (3, f"{arguments}\n", "")


def test_an_extra_brings_the_modules_of_its_distributions() -> None:
    server, fit, bench = (modules_of(extra) for extra in ("server", "fit", "bench"))
    assert {"twinfer_server", "torch", "PIL", "grpc_health", "prometheus_client"} <= server < fit
    assert {"numpy", "PIL"} <= bench
    assert "torch" not in bench


@pytest.mark.parametrize("extra", ["server", "fit", "bench"])
def test_every_distribution_of_an_extra_is_imported_as_is_known(extra: str) -> None:
    requirements = PYPROJECT["project"]["optional-dependencies"][extra]
    names = [requirement.partition(">")[0] for requirement in requirements if not requirement.startswith("twinfer")]
    modules = [IMPORTED_AS.get(name, name.replace("-", "_")) for name in names]
    assert [name for name in modules if importlib.util.find_spec(name) is None] == []


# --- weight -----------------------------------------------------------------------------------------------------------


def test_infer_loads_nothing_heavy(service: ScriptedService) -> None:
    arguments = ["infer", "--text", "fve", "--server", service.address, "--json"]
    done = without((), *arguments, flags=("-X", "importtime"))
    assert json.loads(done.stdout)["label"] == "five"
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert {"grpc", "typer", "twinfer"} <= loaded
    assert loaded & {"torch", "numpy", "PIL", "rich", "twinfer_server"} == set()


def test_version_is_the_packages_own() -> None:
    assert run("--version").stdout == f"{PYPROJECT['project']['version']}\n"
