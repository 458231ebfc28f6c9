"""System shared memory: tensors handed over in it, and everything that could be wrong with a region."""

import os
from collections.abc import Iterator
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests import oip
from tests.calls import Failure, call, connect
from tests.gated import write_gated
from tests.servers import running
from twinfer_server.rpc.oip import grpc_service_pb2 as pb

SIZE = 256
ROWS = np.array([[0, 0, 9], [9, 0, 0]], "<f4")


@pytest.fixture(scope="module")
def channel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[grpc.Channel]:
    folder = write_gated(tmp_path_factory.mktemp("oip") / "gated")
    with (
        running(folder, trust_code=True, shared_memory=True, max_message_bytes=100_000) as server,
        connect(server.address) as channel,
    ):
        yield channel


@pytest.fixture
def memory(channel: grpc.Channel) -> Iterator[SharedMemory]:
    """An object of shared memory; whatever is registered is forgotten afterwards."""
    memory = SharedMemory(create=True, size=SIZE)
    yield memory
    ask(channel, "Unregister", name="")
    memory.close()
    memory.unlink()


def ask(channel: grpc.Channel, what: str, **fields: Any) -> bytes | Failure:
    kind = getattr(pb, f"SystemSharedMemory{what}Request")
    return call(channel, f"{oip.SERVICE}/SystemSharedMemory{what}", kind(**fields).SerializeToString())


def register(channel: grpc.Channel, memory: SharedMemory, name: str = "region", **fields: Any) -> bytes | Failure:
    return ask(channel, "Register", **({"name": name, "key": memory.name, "byte_size": SIZE} | fields))


def check_refused(found: Any, *words: str) -> None:
    assert isinstance(found, Failure)
    assert found.code is grpc.StatusCode.INVALID_ARGUMENT
    assert [word for word in words if word not in found.details] == []


def numbers(**parameters: object) -> oip.Tensor:
    return oip.tensor("numbers", "FP32", [2, 3], **({"shared_memory_region": "region", "shared_memory_byte_size": 24} | parameters))


def test_a_registered_region_is_listed_until_it_is_forgotten(channel: grpc.Channel, memory: SharedMemory) -> None:
    assert register(channel, memory, offset=16, byte_size=64) == b""
    found = ask(channel, "Status", name="region")
    assert isinstance(found, bytes)
    region = pb.SystemSharedMemoryStatusResponse.FromString(found).regions["region"]
    assert (region.name, region.key, region.offset, region.byte_size) == ("region", memory.name, 16, 64)
    assert ask(channel, "Unregister", name="region") == b""
    assert ask(channel, "Unregister", name="region") == b""
    assert ask(channel, "Status") == b""
    check_refused(ask(channel, "Status", name="region"), "'region'", "there are 0")


def test_inputs_and_outputs_lie_in_shared_memory(channel: grpc.Channel, memory: SharedMemory) -> None:
    assert register(channel, memory, offset=8, byte_size=200) == b""
    assert memory.buf is not None
    memory.buf[8 + 4 : 8 + 4 + 24] = ROWS.tobytes()
    place = {"shared_memory_region": "region", "shared_memory_byte_size": 24, "shared_memory_offset": 100}
    outputs = ["degraded", oip.wanted("prediction", **place)]
    text = oip.texts("text", "one", "two")  # raw bytes are of the inputs that are not in shared memory
    request = oip.request("gated", [(numbers(shared_memory_offset=4), None), text], outputs)
    response = oip.infer(channel, request)
    assert isinstance(response, pb.ModelInferResponse), response
    assert [len(data) for data in response.raw_output_contents] == [2, 0]
    output = response.outputs[1]
    assert (list(output.shape), output.parameters["shared_memory_region"].string_param) == ([2, 3], "region")
    assert output.parameters["shared_memory_byte_size"].int64_param == 24
    in_band = oip.read(oip.infer(channel, oip.request("gated", [oip.raw("numbers", "FP32", ROWS), text], ["prediction"])))
    found = np.frombuffer(bytes(memory.buf[8 + 100 : 8 + 124]), "<f4").reshape(2, 3)
    assert found.tolist() == in_band["prediction"].tolist()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": ""}, ("name", "''")),
        ({"name": "n" * 1000}, ("name", "...")),
        ({"key": "/no-such-object-of-shared-memory"}, ("key", "FileNotFoundError")),
        ({"key": ""}, ("key", "''")),
        ({"key": ".."}, ("key", "'..'")),
        ({"key": "../../etc/passwd"}, ("key", "passwd")),
        ({"key": "/" + "k" * 1000}, ("key", "...")),
        ({"key": "a\0b"}, ("key",)),
        ({"byte_size": 0}, ("byte_size", "0 bytes")),
        ({"byte_size": SIZE, "offset": 1}, ("byte_size", "offset 1")),
        ({"byte_size": 2**64 - 1, "offset": 2**64 - 1}, ("byte_size", str(2**64 - 1))),
    ],
    ids=["no name", "a long name", "no such object", "no key", "the folder above", "a way out", "a long key", "a NUL",
         "nothing", "more than there is", "absurd numbers"],
)  # fmt: skip
def test_a_region_that_cannot_be_is_refused(
    channel: grpc.Channel, memory: SharedMemory, fields: dict[str, Any], words: tuple[str, ...]
) -> None:
    check_refused(register(channel, memory, **fields), *words)
    assert ask(channel, "Status") == b""


def test_a_name_is_registered_once(channel: grpc.Channel, memory: SharedMemory) -> None:
    assert register(channel, memory) == b""
    check_refused(register(channel, memory), "'region'", "not registered yet")


@pytest.mark.parametrize("kind", ["a folder", "a link", "a pipe"])
def test_what_is_no_shared_memory_is_refused(channel: grpc.Channel, memory: SharedMemory, tmp_path: Path, kind: str) -> None:
    path = Path("/dev/shm") / f"{memory.name.strip('/')}-other"
    if kind == "a folder":
        path.mkdir()
    elif kind == "a link":
        (tmp_path / "file").write_bytes(bytes(SIZE))
        path.symlink_to(tmp_path / "file")
    else:
        os.mkfifo(path)
    try:
        check_refused(register(channel, memory, key=path.name), "allowed")
    finally:
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"shared_memory_region": "other"}, ("'other'", "there are 1")),
        ({"shared_memory_region": 7}, ("int64_param", "string_param")),
        ({"shared_memory_byte_size": 23}, ("numbers", "23 bytes", "24, as FP32 [2, 3] says")),
        ({"shared_memory_byte_size": SIZE + 1}, (f"{SIZE + 1} bytes", "within the region's 256")),
        ({"shared_memory_byte_size": 24, "shared_memory_offset": SIZE - 23}, ("24 bytes at offset 233", "within")),
        ({"shared_memory_byte_size": 24, "shared_memory_offset": -1}, ("shared_memory_offset", "-1", "at least 0")),
        ({"shared_memory_byte_size": 2**63 - 1, "shared_memory_offset": 2**63 - 1}, (str(2**63 - 1), "within")),
    ],
    ids=["another region", "a region by number", "too few bytes", "too many bytes", "the end", "before the beginning", "absurd"],
)
def test_a_tensor_stays_within_its_region(
    channel: grpc.Channel, memory: SharedMemory, parameters: dict[str, object], words: tuple[str, ...]
) -> None:
    assert register(channel, memory) == b""
    check_refused(oip.infer(channel, oip.request("gated", [(numbers(**parameters), None)])), *words)
    output = oip.wanted("prediction", **({"shared_memory_region": "region", "shared_memory_byte_size": 11} | parameters))
    check_refused(oip.infer(channel, oip.request("gated", [oip.raw("numbers", "FP32", ROWS)], [output])))


def test_an_object_that_has_shrunk_harms_nobody(channel: grpc.Channel, memory: SharedMemory) -> None:
    """Whoever had mapped it would be killed by looking at it."""
    assert register(channel, memory) == b""
    os.truncate(Path("/dev/shm") / memory.name.strip("/"), 8)
    check_refused(oip.infer(channel, oip.request("gated", [(numbers(), None)])), "8 bytes in the shared memory object", "24")
    output = oip.wanted("prediction", shared_memory_region="region", shared_memory_byte_size=24)
    check_refused(oip.infer(channel, oip.request("gated", [oip.raw("numbers", "FP32", ROWS)], [output])), "has shrunk")
    assert (Path("/dev/shm") / memory.name.strip("/")).stat().st_size == 8


def test_elements_and_shared_memory_exclude_each_other(channel: grpc.Channel, memory: SharedMemory) -> None:
    assert register(channel, memory) == b""
    both = numbers()
    both.contents.fp32_contents.extend([0, 0, 9])
    check_refused(oip.infer(channel, oip.request("gated", [(both, None)])), "one or the other")


def test_shared_memory_has_the_limit_of_a_message(channel: grpc.Channel) -> None:
    memory = SharedMemory(create=True, size=200_000)
    try:
        assert register(channel, memory, "large", byte_size=200_000) == b""
        pixels = oip.tensor("image", "UINT8", [1, 200, 500, 2], shared_memory_region="large", shared_memory_byte_size=200_000)
        check_refused(oip.infer(channel, oip.request("gated", [(pixels, None)])), "200000 bytes in shared memory", "100000")
    finally:
        ask(channel, "Unregister")
        memory.close()
        memory.unlink()


def test_there_are_only_so_many_regions(channel: grpc.Channel, memory: SharedMemory) -> None:
    for number in range(256):
        assert register(channel, memory, str(number), byte_size=1) == b""
    check_refused(register(channel, memory, "one more"), "256 regions")
    assert ask(channel, "Unregister") == b""
    assert register(channel, memory, "one more") == b""
