"""Members' models, loaded as an ensemble's file names them and called without an engine."""

import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from twinfer_server.device import CpuDevice
from twinfer_server.executor import Ensemble, load_ensemble
from twinfer_server.inputs import BufferSpec, InputLimits, make_input
from twinfer_server.loaders import LoadedModel, load
from twinfer_server.spec import MemberSpec, read_spec
from twinfer_server.trust import Trust
from twinfer_server.types import Array, RawInput

TRUSTS_ALL = Trust(runs_any_code=True)
CPU = torch.device("cpu")


def load_source(model: str, folder: Path, trust: Trust = TRUSTS_ALL, **keys: object) -> LoadedModel:
    """Load the model of a member "vision" of an ensemble in `folder`, on the CPU; `keys` are further keys of the member."""
    document = {"model": model, "input": {"x": {"kind": "tensor", "dtype": "float32", "shape": [1]}}} | keys
    spec = MemberSpec.model_validate(document, context={"folder": folder})
    return load(spec, folder, CPU, trust, "members.vision")


def load_folder(folder: Path, trust: Trust = TRUSTS_ALL) -> Ensemble:
    """Load the whole ensemble in `folder` on the CPU."""
    return load_ensemble(folder, CpuDevice(streams=2), trust, InputLimits())


def compute(model: LoadedModel, *arguments: Tensor) -> Tensor:
    """Call a loaded model that has one output as a member does."""
    with torch.inference_mode():
        answer = model.module(*arguments)
    assert isinstance(answer, Tensor)
    return answer


def ask_member(
    folder: Path,
    requests: Sequence[Mapping[str, RawInput]],
    trust: Trust = TRUSTS_ALL,
    around: AbstractContextManager[object] | None = None,
) -> Tensor:
    """Return what the member "m" of the ensemble in `folder` computes on some requests together, padded to the longest.

    `around` is entered for the call of the model alone.
    """
    spec = read_spec(folder).members["m"]
    arguments: list[Tensor] = []
    for name, given in spec.input.items():
        kind = make_input("m", name, given, folder, InputLimits(), CPU)  # type: ignore[arg-type]  # no output of another member
        samples = [kind.prepare(kind.decode(request[name])) for request in requests]
        arguments += kind.arguments([_stage(buffer, parts) for buffer, *parts in zip(kind.buffers, *samples, strict=True)])
    model = load(spec, folder, CPU, trust, "members.m")
    with torch.inference_mode(), around or nullcontext():
        outputs = model.module(*arguments)
    found = outputs if isinstance(outputs, Tensor) else outputs[spec.output.select]  # type: ignore[index]
    assert isinstance(found, Tensor)
    return found


def _stage(buffer: BufferSpec, samples: Sequence[Array]) -> Tensor:
    if buffer.is_ragged:
        longest = max(array.shape[1] for array in samples)
        samples = [np.pad(array, ((0, 0), (0, longest - array.shape[1])), constant_values=buffer.fill) for array in samples]
    return torch.from_numpy(np.concatenate(samples))


def find_wrong_in_threads(model: LoadedModel, expected: Callable[[Tensor], Tensor], width: int, threads: int = 4) -> list[Tensor]:
    """Call a model from several threads at once, with inputs of `width` numbers that tell them apart; return wrong answers."""
    start = threading.Barrier(threads)

    def find_wrong(thread: int) -> list[Tensor]:
        start.wait()
        xs = [torch.full((1 + turn % 4, width), float(thread)) for turn in range(30)]
        return [answer for x in xs if not torch.equal(answer := compute(model, x), expected(x))]

    with ThreadPoolExecutor(threads) as pool:
        return list(itertools.chain.from_iterable(pool.map(find_wrong, range(threads))))


SHIFT = torch.tensor([111.0, 122.0, 133.0])
"""What `Shift` adds to its input."""


class Shift(nn.Module):
    """Adds a parameter (12 bytes), a buffer (12 bytes), a constant (12 bytes) and the positions."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([10.0, 20.0, 30.0]))
        self.offset: Tensor
        self.register_buffer("offset", torch.tensor([1.0, 1.0, 1.0]))
        self.constant = torch.tensor([100.0, 100.0, 100.0])
        self.noise = nn.Dropout(0.9)

    def forward(self, x: Tensor) -> Tensor:
        positions = torch.arange(3, device=x.device)
        moved: Tensor = self.noise(x + self.weight) + self.offset + self.constant + positions
        return moved


def export(model: nn.Module, path: Path) -> None:
    """Export a model of 3 numbers for any number of samples."""
    samples = torch.export.Dim("samples", min=1, max=1024)
    torch.export.save(torch.export.export(model, (torch.zeros(2, 3),), dynamic_shapes=({0: samples},)), path)
