"""Messages that are meant to exhaust memory: in tiny pieces, without end, without number, compressed, or of absurd sizes."""

import gzip
import io
import socket
import struct
from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np
import pytest

from tests import oip
from tests.calls import BATCH_INFER, INFER, INFER_STREAM, PATIENCE_SECONDS, Failure, call, read, send, stream
from tests.frames import DATA, END_HEADERS, HEADERS, PREFACE, RST_STREAM, SETTINGS, read_frames, write_frame, write_headers
from tests.gated import make_gated, tensor
from tests.wounds.conftest import MAX_MESSAGE_BYTES, MEBIBYTE, Victim
from twinfer.v1 import ensemble_service_pb2 as pb
from twinfer.v1 import tensor_pb2

WINDOW_UPDATE, PING, ACK = 8, 6, 1
WINDOW = 65_535
TINY = b"\0" + struct.pack(">I", 100) + bytes(100)
"""A message of 100 bytes."""
NO_WINDOW = struct.pack(">HI", 4, 0)
"""The setting by which a client lets no reply come to any of its streams."""


def open_call(victim: Victim, method: str, settings: bytes = b"") -> socket.socket:
    """Open a connection and begin a call on its stream 1."""
    host, _, port = victim.address.rpartition(":")
    pseudo = [(":method", "POST"), (":scheme", "http"), (":path", method), (":authority", "x")]
    fields = write_headers([*pseudo, ("te", "trailers"), ("content-type", "application/grpc")])
    connection = socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS)
    connection.sendall(PREFACE + write_frame(SETTINGS, 0, 0, settings) + write_frame(HEADERS, END_HEADERS, 1, fields))
    return connection


def find_frame(connection: socket.socket, *kinds: int) -> int:
    """Return the kind of the first frame of stream 1 that is of one of these kinds."""
    return next(kind for kind, _, number in read_frames(connection) if number == 1 and kind in kinds)


def test_a_message_in_sixty_thousand_frames_of_one_byte_takes_no_more_than_a_message(victim: Victim) -> None:
    """CVE-2025-23310, CVE-2025-23311: Triton laid out memory for each chunk of a chunked request on its stack."""
    pixels = tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_UINT8, shape=[60, 1000, 1], data=bytes(60_000))
    message = make_gated(more={"image": pb.Input(tensor=pixels)}).SerializeToString()
    with victim.growing_at_most(64), open_call(victim, INFER) as connection:
        whole = b"\0" + struct.pack(">I", len(message)) + message
        connection.sendall(b"".join(write_frame(DATA, 0, 1, whole[at : at + 1]) for at in range(len(whole) - 1)))
        connection.sendall(write_frame(DATA, 1, 1, whole[-1:]))
        assert find_frame(connection, DATA, RST_STREAM) == DATA


def test_a_message_that_says_it_is_too_large_is_refused_before_it_has_come(victim: Victim) -> None:
    """CVE-2025-33201: Triton was ended by an exceptionally large payload."""
    with victim.growing_at_most(16), open_call(victim, INFER) as connection:
        connection.sendall(write_frame(DATA, 0, 1, b"\0" + struct.pack(">I", 2**31) + bytes(1000)))
        assert find_frame(connection, HEADERS, RST_STREAM)  # the status, while all the rest is still to come


def test_a_caller_that_sends_tiny_messages_and_reads_no_reply_is_not_read_from(victim: Victim) -> None:
    """CVE-2025-23310, CVE-2025-23311, as a stream has it: each message is small, and what is kept of them has no end."""
    with victim.growing_at_most(32), open_call(victim, INFER_STREAM, NO_WINDOW) as connection, connection.makefile("rb") as file:
        windows, sent = {0: WINDOW, 1: WINDOW}, 0  # of the connection and of the call: what the server lets come
        for _ in range(150):
            while count := min(*windows.values(), 16_384) // len(TINY):
                size = count * len(TINY)
                connection.sendall(write_frame(DATA, 0, 1, count * TINY))
                windows = {number: window - size for number, window in windows.items()}
                sent += size
            victim.check_that_it_answers()
            connection.sendall(write_frame(SETTINGS, 0, 0))
            while (head := file.read(9))[3:5] != bytes([SETTINGS, ACK]):  # by then it has looked at what came before
                payload = file.read(int.from_bytes(head[:3]))
                if head[3] == WINDOW_UPDATE:
                    windows[int.from_bytes(head[5:])] += int.from_bytes(payload)
                elif head[3] == PING:
                    connection.sendall(write_frame(PING, ACK, 0, payload))
        print(f"sent {sent} bytes")
        assert sent < 4 * WINDOW


def test_a_bomb_is_refused_before_it_is_inflated(victim: Victim) -> None:
    """CVE-2025-23310 and the like: 64 KiB that inflate to 64 MiB, 16 times what a message may have."""
    to_bytes: Any = victim.channel.unary_unary(INFER)
    with victim.growing_at_most(32), pytest.raises(grpc.RpcError) as refused:
        to_bytes(bytes(64 * MEBIBYTE), timeout=PATIENCE_SECONDS, compression=grpc.Compression.Gzip)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_bombs_inside_of_messages_are_inputs_like_any_other_and_nothing_inflates_them(victim: Victim) -> None:
    """CVE-2025-23310 and the like: a compressed file where an image belongs."""
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb") as file:
        file.write(bytes(64 * MEBIBYTE))
    with victim.growing_at_most(16):
        found = call(victim.channel, INFER, make_gated(more={"image": pb.Input(image=packed.getvalue())}).SerializeToString())
        assert isinstance(found, Failure)
        assert found.code is grpc.StatusCode.INVALID_ARGUMENT


HUGE: dict[str, Sequence[int]] = {
    "a product that overflows 64 bits to 0": [2**32, 2**32],
    "a product that overflows 64 bits to 3": [3, 2**62, 4, 2**62],
    "the largest sizes": [2**63 - 1] * 4,
    "the least sizes": [-(2**63)] * 3,
    "a negative size": [-1, 3],
    "two negative sizes, whose product is 3": [-1, -3],
    "huge sizes of nothing": [0, 2**62, 2**62],
    "2 GiB": [2**31],
    "a thousand dimensions": [1] * 1000,
}


@pytest.mark.parametrize("shape", HUGE.values(), ids=HUGE)
def test_sizes_beyond_what_a_message_holds_are_refused_by_every_rpc(victim: Victim, shape: Sequence[int]) -> None:
    """CVE-2025-33201: Triton was ended by an exceptionally large payload."""
    row = make_gated(more={"numbers": pb.Input(tensor=tensor([0.0, 0.0, 9.0], shape))})
    good = make_gated(request_id="good")
    with victim.growing_at_most(16):
        for method, message in ((INFER, row), (BATCH_INFER, pb.BatchInferRequest(requests=[row, good]))):
            found = call(victim.channel, method, message.SerializeToString())
            if isinstance(found, bytes):
                first, second = pb.BatchInferResponse.FromString(found).results
                assert first.error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
                assert second.HasField("response")
            else:
                assert found.code is grpc.StatusCode.INVALID_ARGUMENT
        answers = read(stream(victim.channel, send(row, good)))
        assert sorted(answer.HasField("error") for answer in answers) == [False, True]
        for data in (None, b"", struct.pack("<3f", 0, 0, 9)):
            for kind in ("FP32", "BYTES"):
                asked = oip.request("gated", [(oip.tensor("numbers", kind, shape), data)])
                found = oip.infer(victim.channel, asked)
                assert isinstance(found, Failure)
                assert found.code is grpc.StatusCode.INVALID_ARGUMENT


LENGTHS = {"2 GiB": 2**31, "4 GiB less one": 2**32 - 1, "one byte more than there are": 4}


@pytest.mark.parametrize("length", LENGTHS.values(), ids=LENGTHS)
def test_an_element_that_says_it_is_longer_than_its_tensor_is_refused(victim: Victim, length: int) -> None:
    """CVE-2025-33201: the lengths before a BYTES tensor's elements are the caller's, too."""
    data = struct.pack("<I", length) + b"two"
    with victim.growing_at_most(16):
        found = oip.infer(victim.channel, oip.request("gated", [(oip.tensor("text", "BYTES", [1, 1]), data)]))
        assert isinstance(found, Failure)
        assert found.code is grpc.StatusCode.INVALID_ARGUMENT


def test_more_of_everything_than_may_be_is_refused(victim: Victim) -> None:
    """CVE-2025-33201: many inputs, texts, raw contents, parameters, requests and weights, as many as a message holds."""
    texts = make_gated(more={"text": pb.Input(texts={"values": ["x"] * 500_000})})
    inputs = pb.InferRequest(inputs={f"x{number}": pb.Input(text="x") for number in range(100_000)})
    weights = make_gated(options=pb.InferOptions(fusion_weights={f"x{number}": 1.0 for number in range(100_000)}))
    raw = oip.request("gated", [oip.raw("numbers", "FP32", np.zeros((1, 3)))])
    raw.raw_input_contents.extend([b""] * 500_000)
    many = pb.BatchInferRequest(requests=[pb.InferRequest()] * 500_000)
    with victim.growing_at_most(256):
        for method, message in ((INFER, texts), (INFER, inputs), (INFER, weights), (oip.MODEL_INFER, raw), (BATCH_INFER, many)):
            found = call(victim.channel, method, message.SerializeToString())
            assert isinstance(found, Failure)
            assert found.code is grpc.StatusCode.INVALID_ARGUMENT
        found = call(victim.channel, INFER, bytes(MAX_MESSAGE_BYTES + 1))
        assert isinstance(found, Failure)
        assert found.code is grpc.StatusCode.RESOURCE_EXHAUSTED
