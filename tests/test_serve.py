"""A server's life from outside: signals, exit codes, and what an operator reads when something is wrong."""

import json
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.calls import GET_ENSEMBLE, INFER, PATIENCE_SECONDS, Failure, Outbox, begin, call, connect, infer, read_failure, stream
from tests.gated import HELD, Gate, row, write_gated
from tests.processes import run, started
from tests.servers import DIGITS
from tests.without import without
from twinfer.v1 import ensemble_service_pb2 as pb

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def watch(channel: grpc.Channel) -> Any:
    return health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE_SECONDS)


def first_label(answer: pb.InferResponse) -> str:
    return answer.prediction.classification.classes[0].label


# --- the end ----------------------------------------------------------------------------------------------------------


def test_sigterm_answers_what_is_in_hand_refuses_what_is_new_and_ends_with_0(folder: Path, gate: Gate) -> None:
    # The drain may take longer than this test waits: what ends it is that everything is answered.
    # Nor does the breaker of the member that stands at the gate open meanwhile.
    patient = ("--set", f"drain_seconds={100 * PATIENCE_SECONDS}", "--set", f"breaker_stall_seconds={100 * PATIENCE_SECONDS}")
    with started(folder, *patient) as server, connect(server.address) as channel:
        idle = watch(channel)
        assert next(idle).status == SERVING
        outbox = Outbox()
        open_stream = stream(channel, outbox)
        outbox.put(row(0, "before"))
        assert pb.InferStreamResponse.FromString(next(open_stream)).request_id == "before"
        held = begin(channel, INFER, row(HELD).SerializeToString())
        gate.wait_for_somebody()
        outbox.put(row(0, "streamed"))
        # It waits behind the held row; this answer comes after it was read, for a stream's rows are read in order.
        outbox.put(pb.InferRequest(request_id="bad"))
        assert pb.InferStreamResponse.FromString(next(open_stream)).request_id == "bad"

        server.process.send_signal(signal.SIGTERM)
        assert [status.status for status in idle] == [NOT_SERVING]
        while isinstance(found := call(channel, GET_ENSEMBLE, b""), bytes):
            pass  # the server says goodbye a little later
        assert found.code is grpc.StatusCode.UNAVAILABLE
        refused = call(channel, INFER, row().SerializeToString())
        assert isinstance(refused, Failure)
        assert refused.code is grpc.StatusCode.UNAVAILABLE

        gate.open()
        assert first_label(pb.InferResponse.FromString(held.result())) == "c"
        answer = pb.InferStreamResponse.FromString(next(open_stream))
        assert (answer.request_id, first_label(answer.response)) == ("streamed", "c")
        with pytest.raises(grpc.RpcError) as ended:
            next(open_stream)
        failure = read_failure(ended.value)
        assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        assert server.wait() == 0
        outbox.close()


def test_a_client_of_two_servers_loses_no_call_when_one_of_them_drains(folder: Path, gate: Gate, tmp_path: Path) -> None:
    one_like = ("--set", "max_in_flight_requests=11", "--set", f"drain_seconds={100 * PATIENCE_SECONDS}")
    with started(folder, *one_like) as one, started(write_gated(tmp_path / "other")) as other, connect(one.address) as channel:
        statuses = watch(channel)
        assert next(statuses).status == SERVING
        held = begin(channel, INFER, row(HELD).SerializeToString())
        gate.wait_for_somebody()
        with grpc.insecure_channel(f"ipv4:{one.address},{other.address}", [("grpc.lb_policy_name", "round_robin")]) as both:

            def ask() -> int:
                reply = call(both, GET_ENSEMBLE, b"")
                assert isinstance(reply, bytes), reply
                return pb.GetEnsembleResponse.FromString(reply).ensemble.limits.max_in_flight_requests

            while ask() != 11:
                pass
            one.process.send_signal(signal.SIGTERM)
            with ThreadPoolExecutor(1) as pool:
                told = pool.submit(lambda: [status.status for status in statuses])
                while not told.done():
                    ask()
            assert told.result() == [NOT_SERVING]
            while not all(ask() != 11 for _ in range(20)):
                pass  # it says goodbye a little later than it reports its health; until then it answers
        gate.open()
        assert first_label(pb.InferResponse.FromString(held.result())) == "c"
        assert one.wait() == 0


def test_rows_that_outstay_the_drain_are_given_up_and_it_still_ends_with_0(folder: Path, gate: Gate) -> None:
    with started(folder, "--set", "drain_seconds=0.2") as server, connect(server.address) as channel:
        held = begin(channel, INFER, row(HELD).SerializeToString())
        gate.wait_for_somebody()
        server.process.send_signal(signal.SIGINT)
        with pytest.raises(grpc.RpcError) as given_up:
            held.result()
        assert read_failure(given_up.value).code is grpc.StatusCode.UNAVAILABLE
        assert server.wait() == 0
        assert "given up" in server.log.read_text()


def test_a_second_signal_ends_it_at_once(folder: Path, gate: Gate) -> None:
    with started(folder, "--set", f"drain_seconds={100 * PATIENCE_SECONDS}") as server, connect(server.address) as channel:
        idle = watch(channel)
        assert next(idle).status == SERVING
        held = begin(channel, INFER, row(HELD).SerializeToString())
        gate.wait_for_somebody()
        server.process.send_signal(signal.SIGTERM)
        assert next(idle).status == NOT_SERVING  # the first one has been taken note of
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 128 + signal.SIGTERM
        assert held.code() is grpc.StatusCode.UNAVAILABLE


def test_sigterm_while_it_loads_ends_it_with_0(folder: Path) -> None:
    gate = Gate(folder, "load")
    try:
        with started(folder, until="listening on ") as server:
            gate.wait_for_somebody()
            server.process.send_signal(signal.SIGTERM)
            assert server.wait() == 0
    finally:
        gate.open()


@pytest.mark.parametrize("set_by_the_operator", [{}, {"GRPC_EXPERIMENTS": "event_engine_fork"}], ids=["not set", "set"])
def test_gRPC_is_imported_with_our_choice_of_poller_where_the_operator_has_made_none(
    folder: Path, set_by_the_operator: dict[str, str]
) -> None:
    with started(folder, until="listening on ", env=set_by_the_operator) as server:
        found = Path(f"/proc/{server.process.pid}/environ").read_bytes().split(b"\0")
        expected = set_by_the_operator.get("GRPC_EXPERIMENTS", "-event_engine_listener")
        assert f"GRPC_EXPERIMENTS={expected}".encode() in found


def test_whoever_reads_what_it_prints_may_go(folder: Path) -> None:
    with started(folder, until="listening on ") as server, connect(server.address) as channel:
        assert server.process.stdout is not None
        server.process.stdout.close()
        while isinstance(infer(channel, row()), Failure):  # it loads, and says what nobody hears
            assert server.process.poll() is None


LIMITED = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 300))
from twinfer_server.runtime import allow_connections
allow_connections()
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def test_it_may_have_as_many_connections_as_the_system_allows() -> None:
    assert without((), program=LIMITED).stdout == "300 300\n"


# --- the beginning ----------------------------------------------------------------------------------------------------


def check_plain_error(found: Any, *words: str, code: int = 1) -> None:
    """The process has ended with `code` and a message with `words`, and nobody has to read a traceback."""
    assert found.returncode == code, found.stderr
    assert "Traceback" not in found.stderr
    assert [word for word in words if word not in found.stderr] == [], found.stderr


def test_a_second_server_on_a_port_is_refused(folder: Path, tmp_path: Path) -> None:
    with started(folder) as server:
        found = run("serve", str(DIGITS), "--listen", server.address)
        check_plain_error(found, f"error: cannot listen on {server.address}", "another server")
        with connect(server.address) as channel:
            assert isinstance(infer(channel, row()), pb.InferResponse)
        found = run("serve", str(DIGITS), "--listen", "127.0.0.1:0", "--admin-listen", server.address)
        check_plain_error(found, f"error: cannot listen on {server.address}", "another server")


def test_a_broken_folder_is_refused_in_plain_words(folder: Path) -> None:
    toml = folder / "ensemble.toml"
    toml.write_text(toml.read_text().replace("version = 7", 'version = "seven"').replace("size = [2, 2]", "size = [2]"))
    found = run("serve", str(folder), "--listen", "127.0.0.1:0", "--trust-code")
    check_plain_error(found, "version", "'seven'", "members.picture.input.image.size")
    assert "ready" not in found.stdout


def test_a_model_that_does_not_fit_is_refused_with_every_word_of_the_reason(folder: Path) -> None:
    (folder / "models.py").write_text(
        "import torch\nclass Numbers(torch.nn.Module):\n    def forward(self, x): return x[:, :, None]\n"
        "class Zeros(torch.nn.Module):\n    def forward(self, x): return torch.zeros(len(x), 3)\n"
    )
    found = run("serve", str(folder), "--listen", "127.0.0.1:0", "--trust-code")
    check_plain_error(found, "members.numbers.output", "[3, 1]", "allowed: [classes]")


def test_programs_that_nobody_trusts_do_not_run(folder: Path) -> None:
    (folder / "models.py").write_text("raise SystemExit('it ran')")
    found = run("serve", str(folder), "--listen", "127.0.0.1:0")
    check_plain_error(found, "members.numbers.model", "trust")
    assert "it ran" not in found.stderr


@pytest.mark.parametrize(
    ("arguments", "env", "code", "words"),
    [
        ((), {"TWINFER_LISTN": "127.0.0.1:0"}, 1, ("environment", "TWINFER_LISTN", "TWINFER_LISTEN")),
        (("--set", "drain_secnods=5"), {}, 2, ("drain_secnods=5", "drain_seconds")),
        (("--listen", "192.0.2.1:0"), {}, 1, ("cannot listen on 192.0.2.1:0",)),
        (("--device", "abacus"), {}, 1, ("device", "abacus", "cpu")),
    ],
    ids=[
        "a variable that names no setting",
        "a name that is no setting",
        "an address of another machine",
        "a device that nobody knows",
    ],
)
def test_wrong_settings_are_refused(
    folder: Path, arguments: tuple[str, ...], env: dict[str, str], code: int, words: tuple[str, ...]
) -> None:
    listen = () if "--listen" in arguments else ("--listen", "127.0.0.1:0")
    check_plain_error(run("serve", str(folder), *listen, *arguments, env=env), *words, code=code)


def test_settings_come_from_variables_and_flags_win(folder: Path) -> None:
    env = {"TWINFER_MAX_TEXT_BYTES": "77", "TWINFER_MAX_IN_FLIGHT_REQUESTS": "88", "TWINFER_TRUST_CODE": "0"}
    arguments = ("--set", "max_in_flight_requests=99", "--set", "admin_listen=127.0.0.1:0")
    with started(folder, *arguments, env=env) as server, connect(server.address) as channel:
        reply = call(channel, GET_ENSEMBLE, b"")
        assert isinstance(reply, bytes)
        limits = pb.GetEnsembleResponse.FromString(reply).ensemble.limits
        assert (limits.max_text_bytes, limits.max_in_flight_requests) == (77, 99)
        assert server.admin_address.startswith("127.0.0.1:")


def test_the_log_is_json_lines_on_request(folder: Path) -> None:
    with started(folder, "--log-json") as server:
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0
    records = [json.loads(line) for line in server.log.read_text().splitlines()]
    assert all(record.keys() >= {"time", "level", "logger", "message"} for record in records)
    assert [record["message"] for record in records if "drain" in record["message"]]
    assert all(re.match(r"\d{4}-\d\d-\d\d", record["time"]) for record in records)


# --- twinfer validate -------------------------------------------------------------------------------------------------


def test_validate_describes_a_good_folder(folder: Path) -> None:
    found = run("validate", str(folder), "--trust-code")
    assert (found.returncode, "valid" in found.stdout.splitlines()[-1]) == (0, True), found.stderr
    assert [word for word in ("gated", "numbers", "picture", "words", "weighted_mean") if word not in found.stdout] == []


def test_validate_prints_one_json_object_even_where_colours_are_forced(folder: Path) -> None:
    found = run("validate", str(folder), "--trust-code", "--json", env={"FORCE_COLOR": "1"})
    report = json.loads(found.stdout)
    assert (found.returncode, report["is_valid"], report["name"], report["version"]) == (0, True, "gated", 7)
    assert [member["name"] for member in report["members"]] == ["numbers", "picture", "words"]
    assert all(member["solo_latencies"] for member in report["members"])


def test_validate_refuses_a_bad_folder(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    check_plain_error(run("validate", str(folder), "--trust-code"), "members.words.input.text.tokenizer", "no such file")


def test_validate_says_what_is_wrong_as_json_too(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    found = run("validate", str(folder), "--trust-code", "--json")
    check_plain_error(found)
    report = json.loads(found.stdout)
    assert report["is_valid"] is False
    assert "members.words.input.text.tokenizer" in report["error"]


def test_not_even_the_most_talkative_log_tells_what_callers_keep_to_themselves(folder: Path) -> None:
    with started(folder, "--set", "log_level=debug") as server, connect(server.address) as channel:
        method: Any = channel.unary_unary(INFER)
        method(row().SerializeToString(), timeout=PATIENCE_SECONDS, metadata=[("authorization", "Bearer of-a-secret")])
        assert "of-a-secret" not in server.log.read_text()
