"""Compiled packages: `.pt2` files of `torch._inductor.aoti_compile_and_package`, machine code for one kind of device."""

import io
import json
import tempfile
import zipfile

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .model import LoadedModel
from .source import Source, outline

COMPILED_FOLDER = "/data/aotinductor/"
"""Where in the archive AOTInductor's libraries lie; an exported program has its graph in `models/`."""

CUDA_RUNNERS = 2
"""As many as a member may have flights on a GPU at once. A runner is free again only when the GPU is done, and a call without one
waits for that, on the launch thread. They share their weights."""


class CompiledPackage:
    """A compiled package, ready to be called from any thread.

    By torch's runner itself: `torch._inductor.aoti_load_package` would load the whole compiler, for seconds, with some 80 MB,
    and read the form of the outputs again at every call.
    """

    def __init__(self, content: bytes, runners: int) -> None:
        """Load the package for so many calls at once; raises whatever torch stumbles over."""
        with tempfile.NamedTemporaryFile(suffix=".pt2") as file:
            file.write(content)
            file.flush()
            self._loader = torch._C._aoti.AOTIModelPackageLoader(file.name, "model", False, runners, -1)
        self._form = pytree.treespec_loads(self._loader.get_call_spec()[1])

    def __call__(self, *arguments: Tensor) -> object:
        """Compute on tensors, by position, and give what the model gives."""
        return pytree.tree_unflatten(self._loader.boxed_run(list(arguments)), self._form)


def load_compiled(source: Source, content: bytes, digest: str) -> LoadedModel:
    """Load a trusted compiled package; raises InvalidEnsemble where it was made for another kind of device or processor.

    It is never inside a capture: its lock, which makes it safe to call from several threads, does not go with CUDA graphs. Its
    size is that of its libraries and weights as they lie in the archive.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()
        facts = [json.loads(archive.read(entry)) for entry in entries if entry.filename.endswith("wrapper_metadata.json")]
    for fact in facts:
        made_for, instructions = fact.get("AOTI_DEVICE_KEY", ""), fact.get("AOTI_CPU_ISA", "")
        if made_for != source.device.type:
            raise source.refuse(
                f"compiled for {made_for!r}", f"a package compiled for {source.device.type!r}, on which it is served"
            )
        if "AVX512" in instructions and torch.backends.cpu.get_cpu_capability() != "AVX512":
            # It would end the process with SIGILL.
            raise source.refuse(f"compiled for a processor with {instructions}", "a package compiled on a machine like this one")
    try:
        package = CompiledPackage(content, CUDA_RUNNERS if source.device.type == "cuda" else 1)
    except Exception as error:
        raise source.refuse(
            f"which torch {torch.__version__} cannot load ({outline(error)})",
            "a package of torch._inductor.aoti_compile_and_package",
        ) from error
    size = sum(entry.file_size for entry in entries if entry.filename.endswith((".so", ".bin")) or "/weights/" in entry.filename)
    return LoadedModel(package, "aotinductor", size, digest, is_capturable=False)
