"""An ensemble whose answers one can check by eye, with gates that a test holds and opens; it works across processes.

Three members, one for each kind of input: `numbers` answers with its own input as logits, `picture` always with [0, 0, 0], `words`
too. A request whose first number is HELD stands at the gate `compute` until the test opens it; loading stands at the gate `load`.
"""

import os
import shutil
import struct
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.calls import PATIENCE_SECONDS
from tests.servers import DIGITS, write_ensemble
from twinfer.v1 import ensemble_service_pb2 as pb
from twinfer.v1 import tensor_pb2

HELD = -1.0

TOML = """
    name = "gated"
    version = 7
    task = "classification"
    labels = "labels.txt"
    policy = "best_effort"
    execution = "serial"

    [members.numbers]
    model = "python:models.py:Numbers"
    [members.numbers.input.numbers]
    kind = "tensor"
    dtype = "float32"
    shape = [3]

    [members.picture]
    model = "python:models.py:Zeros"
    [members.picture.input.image]
    kind = "image"
    size = [2, 2]

    [members.words]
    model = "python:models.py:Zeros"
    [members.words.input.text]
    kind = "text"
    tokenizer = "tokenizer.json"
    max_tokens = 8

    [fusion]
    method = "weighted_mean"

    [batching]
    max_batch_size = 4
"""

MODELS = """
    from pathlib import Path

    import torch


    def stand_at_gate(name):
        try:
            # Opening a FIFO waits for a writer, reading it to the end waits until the writer has closed it.
            (Path(__file__).parent / name).read_bytes()
        except FileNotFoundError:
            pass


    stand_at_gate("load")


    class Numbers(torch.nn.Module):
        def forward(self, numbers):
            if bool((numbers[:, 0] == -1.0).any()):
                stand_at_gate("compute")
            return numbers


    class Zeros(torch.nn.Module):
        def forward(self, values):
            return torch.zeros(len(values), 3)
"""


class Gate:
    """A gate at which a model stands until `open` is called, whatever process it is in."""

    def __init__(self, folder: Path, name: str = "compute") -> None:
        """Close it."""
        self._path = folder / name
        self._writer: int | None = None
        os.mkfifo(self._path)

    def wait_until_reached(self) -> None:
        """Return when a model stands at the gate."""
        stand_in: list[int] = []  # a reader in the model's place, so that a test that waits in vain fails rather than hangs
        timer = threading.Timer(PATIENCE_SECONDS, lambda: stand_in.append(os.open(self._path, os.O_RDONLY | os.O_NONBLOCK)))
        timer.start()
        self._writer = os.open(self._path, os.O_WRONLY)
        timer.cancel()
        assert not stand_in, f"no model came to the gate {self._path.name!r}"

    def open(self) -> None:
        """Let every model pass, for good."""
        if not self._path.exists():
            return
        opener = os.open(self._path, os.O_RDWR)  # with it, no reader waits for a writer any more
        self._path.unlink()
        os.close(opener)
        if self._writer is not None:
            os.close(self._writer)


def write_gated(folder: Path, toml: str = "") -> Path:
    """Write the ensemble, with further lines of `ensemble.toml`."""
    write_ensemble(folder, TOML + toml, {"models.py": MODELS, "labels.txt": "a\nb\nc\n"})
    shutil.copy(DIGITS / "tokenizer.json", folder)
    return folder


def tensor(
    values: Sequence[float], shape: Sequence[int] | None = None, dtype: int = tensor_pb2.DATA_TYPE_FP32
) -> tensor_pb2.Tensor:  # fmt: skip
    """Make a tensor of float32 bytes, whatever its dtype and shape say."""
    data = struct.pack(f"<{len(values)}f", *values)
    return tensor_pb2.Tensor(dtype=dtype, shape=[len(values)] if shape is None else shape, data=data)  # type: ignore[arg-type]


def make_gated(
    first: float = 0.0, request_id: str = "", options: pb.InferOptions | None = None, more: Mapping[str, pb.Input] | None = None
) -> pb.InferRequest:
    """Make a request that is answered with class "c"."""
    inputs = {"numbers": pb.Input(tensor=tensor([first, 0.0, 9.0])), **(more or {})}
    return pb.InferRequest(inputs=inputs, request_id=request_id, options=options)
