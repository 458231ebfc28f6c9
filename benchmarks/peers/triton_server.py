"""The pair behind Triton with its Python backend: the server of nvidia-pytriton's wheel, in an environment of its own.

As a program it writes a model repository and becomes Triton; as a module it is the model that Triton's backend loads.

    python -m benchmarks.peers.triton_server noop 8001 8000 build/triton
"""

import os
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers.models import CLASSES
from benchmarks.peers.pairs import DELAY_SECONDS, MAX_BATCH_SIZE, PAIRS, Both, Pair

TYPES = {"float32": "FP32", "uint8": "UINT8", "int64": "INT64"}


class TritonPythonModel:
    """The pair, as Triton's Python backend calls it."""

    def initialize(self, arguments: dict[str, str]) -> None:
        """Make the models."""
        torch.set_num_threads(1)
        self._pair = PAIRS[arguments["model_name"]]
        self._compute = Both(self._pair)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Compute the requests that Triton has put together, each of [n, ...], and return a response for each."""
        import triton_python_backend_utils as backend  # type: ignore[import-not-found]  # Triton brings it

        inputs = {
            name: [backend.get_input_tensor_by_name(each, name).as_numpy() for each in requests] for name in self._pair.inputs
        }
        sizes = [len(array) for array in next(iter(inputs.values()))]
        fused = self._compute({name: np.concatenate(arrays) for name, arrays in inputs.items()})
        parts = np.split(fused, np.cumsum(sizes)[:-1])
        return [backend.InferenceResponse([backend.Tensor("prediction", part)]) for part in parts]


def write_repository(pair: Pair, folder: Path) -> None:
    """Write a model repository with the pair."""
    inputs = ", ".join(
        f'{{name: "{name}", data_type: TYPE_{TYPES[dtype]}, dims: {list(shape)}}}' for name, (dtype, shape) in pair.inputs.items()
    )
    (folder / pair.name / "1").mkdir(parents=True)
    (folder / pair.name / "1" / "model.py").write_text(  # the backend knows nothing of virtual environments
        f"import sys\nsys.path[:0] = {sys.path}\nfrom benchmarks.peers.triton_server import TritonPythonModel\n"
    )
    (folder / pair.name / "config.pbtxt").write_text(
        f'name: "{pair.name}"\nbackend: "python"\nmax_batch_size: {MAX_BATCH_SIZE}\ninput [{inputs}]\n'
        f'output [{{name: "prediction", data_type: TYPE_FP32, dims: [{CLASSES}]}}]\n'
        f"dynamic_batching {{max_queue_delay_microseconds: {round(DELAY_SECONDS * 1e6)}}}\n"
        "instance_group [{count: 1, kind: KIND_CPU}]\n"
    )


def main(name: str, grpc_port: str, http_port: str, workspace: str) -> None:
    """Become Triton."""
    folder = Path(workspace)
    write_repository(PAIRS[name], folder / "models")
    site = Path(sysconfig.get_path("purelib"))
    bundled = site / "pytriton" / "tritonserver"
    shutil.copytree(bundled / "backends", folder / "backends")
    stub = bundled / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}" / "triton_python_backend_stub"
    shutil.copy(stub, folder / "backends" / "python")
    # The backend would else find the system's libpython, which may be older than this one's library.
    libraries = (str(site / "nvidia_pytriton.libs"), str(sysconfig.get_config_var("LIBDIR")))
    command = [
        str(bundled / "bin" / "tritonserver"), f"--model-repository={folder / 'models'}",
        f"--backend-directory={folder / 'backends'}", f"--grpc-port={grpc_port}", f"--http-port={http_port}",
        "--allow-metrics=false", "--log-verbose=0",
    ]  # fmt: skip
    os.execve(command[0], command, {**os.environ, "LD_LIBRARY_PATH": ":".join(libraries)})


if __name__ == "__main__":
    main(*sys.argv[1:])
