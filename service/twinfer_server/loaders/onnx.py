"""ONNX: `.onnx` files, which are data, computed by ONNX Runtime on the CPU, whatever the device of the other members.

On a GPU the member's inputs come to the host and its outputs go back, and the launch thread waits for that; it is never inside
a capture. ONNX Runtime's CUDA provider, which would compute on a stream of its own, is not supported yet.
"""

from typing import Any

import torch
from torch import Tensor

from .model import LoadedModel
from .source import Source, hash_file, outline

TOKEN_TYPES = "token_type_ids"
"""An input of many exported text models, which is 0 wherever a text stands alone."""


class OnnxModel:
    """A session that takes tensors by position and gives its outputs by name; safe to call from several threads."""

    def __init__(self, session: Any, device: torch.device) -> None:
        """Take over a session; outputs are handed on to `device`."""
        self._session = session
        self._device = device
        self._inputs = [node.name for node in session.get_inputs()]
        self._outputs = [node.name for node in session.get_outputs()]

    def __call__(self, *arguments: Tensor) -> dict[str, Tensor]:
        """Compute; raises ValueError where the arguments are not as many as the graph's inputs."""
        names = self._inputs
        if len(arguments) == len(names) - 1:
            names = [name for name in names if name != TOKEN_TYPES]
        if len(arguments) != len(names):
            raise ValueError(f"the member's inputs give {len(arguments)} tensors; allowed: {len(names)}, for {', '.join(names)}")
        feed = {name: argument.cpu().numpy() for name, argument in zip(names, arguments, strict=True)}
        if len(names) < len(self._inputs):
            feed[TOKEN_TYPES] = torch.zeros_like(arguments[0], device="cpu").numpy()
        found = self._session.run(self._outputs, feed)
        return {name: torch.from_numpy(array).to(self._device) for name, array in zip(self._outputs, found, strict=True)}


def load_onnx(source: Source) -> LoadedModel:
    """Open a session on a file of the folder, with as many threads as torch has here; raises InvalidEnsemble.

    Its size is that of the file; tensors that the file keeps in others beside it are read but not counted.
    """
    onnxruntime = source.import_extra("onnxruntime", "onnx")
    path = source.find_file()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # what matters is raised
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # other members want the cores
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of classes of its own
        raise source.refuse(
            f"which ONNX Runtime {onnxruntime.__version__} cannot read ({outline(error)})", "an ONNX model"
        ) from error
    return LoadedModel(OnnxModel(session, source.device), "onnx", path.stat().st_size, hash_file(path), is_capturable=False)
