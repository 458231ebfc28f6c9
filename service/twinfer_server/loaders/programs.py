"""Archives that torch writes, all of them programs: exported programs, compiled packages, and TorchScript.

`.pt2` files are written by `torch.export.save`, or by `torch._inductor.aoti_compile_and_package`, which makes machine code for one
kind of device; the archive's table of contents tells them apart. `.pt` and `.ts` files are written by `torch.jit.save`.
"""

import io
import itertools
import json
import logging
import re
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..errors import quote
from .arguments import Adapter, Declared, cast_floats, find_float_dtype, find_own_dtype, list_arguments, make_adapters
from .model import LoadedModel, count_bytes, list_tensors
from .source import Source

if TYPE_CHECKING:
    from torch.export import ExportedProgram

COMPILED_FOLDER = "/data/aotinductor/"
"""Where in the archive AOTInductor's libraries lie; an exported program has its graph in `models/`."""
SCRIPT_FOLDER = "/code/"
"""Where TorchScript lies; torch.save writes the same kind of archive without it."""
EXPECTED_DTYPE = re.compile(r"(\w+)_expected_dtype = aoti_torch_dtype_(\w+)\(\)")
"""What a compiled package's source says of each input, in their order."""
CUDA_RUNNERS = 2
"""As many as a member may have batches on a GPU at once. A runner is free again only when the GPU is done, and a call without one
waits for that, on the launch thread. They share their weights."""
CANNOT_READ = f"which torch {torch.__version__} cannot read"
ALLOWED = "a program saved by torch.export.save"

logger = logging.getLogger(__name__)


def load_pt2(source: Source) -> LoadedModel:
    """Load an exported program, wherever it was exported, onto the device, or a package that was compiled for it.

    Raises UntrustedCode before anything in the file is parsed, and InvalidEnsemble.
    """
    content, digest = source.read_program()
    with source.reading(CANNOT_READ, ALLOWED):
        entries = _list_entries(content)
    if any(COMPILED_FOLDER in name for name in entries):
        return _load_compiled(source, content, digest)
    from torch.export.passes import move_to_device_pass  # here, for the compiled packages that do without torch.export

    with source.reading(CANNOT_READ, ALLOWED), _without_log("torch.export"):
        if not entries:
            raise ValueError("it is no archive")
        program = move_to_device_pass(torch.export.load(io.BytesIO(content)), source.device)
    _refuse_training(program, source)
    module = program.module(check_guards=False)  # keeps the mode it was exported in; its .eval() only raises
    module.requires_grad_(False)
    constants = [value for value in program.constants.values() if isinstance(value, Tensor)]
    tensors = [*program.state_dict.values(), *constants]
    declared = _list_inputs(program)
    fixed = {one.shape[0] for one in declared if one.shape} - {None}
    # `forward` goes past the checks of the inputs' shapes, which are symbolic algebra in Python and cost more than a small model.
    return LoadedModel(
        module.forward, "pt2", count_bytes(tensors), digest, checked=module, adapters=_adapt(source, declared),
        dtype=find_float_dtype(tensor.dtype for tensor in tensors), fixed_samples=next(iter(fixed), None),
    )  # fmt: skip


def load_torchscript(source: Source) -> LoadedModel:
    """Load a TorchScript module onto the device, in evaluation mode; raises UntrustedCode and InvalidEnsemble."""
    content, digest = source.read_program()
    with source.reading(CANNOT_READ, "a module saved by torch.jit.save, or better a .pt2 of torch.export.save"):
        if not any(SCRIPT_FOLDER in name for name in _list_entries(content)):
            raise ValueError("it holds no TorchScript; torch.save writes weights or pickled objects, not models")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # said below, in the log
            module = torch.jit.load(io.BytesIO(content), map_location=source.device)
        module.eval()
        for parameter in module.parameters():
            parameter.requires_grad_(False)
    logger.warning(
        "%s is TorchScript, which PyTorch has deprecated; it is served, but save it with torch.export some day", source.spec.model
    )
    tensors = list_tensors(module)
    dtype, is_alone = find_own_dtype(tensors)
    adapters = cast_floats(source, dtype) if is_alone else ()
    return LoadedModel(module, "torchscript", count_bytes(tensors), digest, adapters=adapters, dtype=dtype)


def _load_compiled(source: Source, content: bytes, digest: str) -> LoadedModel:
    """Load a trusted compiled package; raises InvalidEnsemble where it was made for another kind of device or processor.

    No CUDA graph holds it: its lock, which makes it safe to call from several threads, does not go with them. Its size is that
    of its libraries and weights as they lie in the archive.
    """
    allowed = "a package of torch._inductor.aoti_compile_and_package"
    with source.reading(CANNOT_READ, allowed), zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()
        facts = [dict(json.loads(archive.read(entry))) for entry in entries if entry.filename.endswith("wrapper_metadata.json")]
        code = [archive.read(entry).decode() for entry in entries if entry.filename.endswith(".wrapper.cpp")]
    kind = source.device.type
    for fact in facts:
        made_for, instructions = fact.get("AOTI_DEVICE_KEY", ""), str(fact.get("AOTI_CPU_ISA", ""))
        if made_for != kind:
            raise source.refuse(f"compiled for {quote(made_for)}", f"a package compiled for {kind!r}, on which it is served")
        if "AVX512" in instructions and torch.backends.cpu.get_cpu_capability() != "AVX512":
            # It would end the process with SIGILL.
            raise source.refuse(
                f"compiled for a processor with {quote(instructions)}", "a package compiled on a machine like this one"
            )
    with source.reading(CANNOT_READ, allowed), tempfile.NamedTemporaryFile(suffix=".pt2") as file:
        file.write(content)
        file.flush()
        # By torch's runner itself: `torch._inductor.aoti_load_package` would load the whole compiler, for seconds, with some 80 MB,
        # has no setting for runners, and reads the form of the outputs again at every call.
        runners = CUDA_RUNNERS if kind == "cuda" else 1
        loader = torch._C._aoti.AOTIModelPackageLoader(file.name, "model", False, runners, -1)
        form = pytree.treespec_loads(loader.get_call_spec()[1])

    def compute(*arguments: Tensor) -> object:
        return pytree.tree_unflatten(loader.boxed_run(list(arguments)), form)

    size = sum(entry.file_size for entry in entries if entry.filename.endswith((".so", ".bin")) or "/weights/" in entry.filename)
    # The library does not look at what it is given; its source, which the archive brings, says what it takes.
    declared = [Declared(name, getattr(torch, dtype)) for name, dtype in EXPECTED_DTYPE.findall("".join(code))]
    dtype = find_float_dtype(one.dtype for one in declared)
    return LoadedModel(
        compute, "aotinductor", size, digest, is_capturable=False, adapters=_adapt(source, declared), dtype=dtype
    )  # fmt: skip


def _list_inputs(program: "ExportedProgram") -> list[Declared]:
    """Return what a program says of its inputs; none where some are no tensors."""
    places = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    declared: list[Declared] = []
    for name in map(str, program.graph_signature.user_inputs):
        value: object = places.get(name)
        if not isinstance(value, Tensor):
            return []
        sizes: tuple[object, ...] = tuple(value.shape)  # symbols, too
        declared.append(Declared(name, value.dtype, tuple(size if isinstance(size, int) else None for size in sizes)))
    return declared


def _adapt(source: Source, declared: Sequence[Declared]) -> tuple[Adapter | None, ...]:
    """Find what becomes of the member's tensors; where they are not as many as the program's inputs, the first call says so."""
    return make_adapters(source, declared) if len(declared) == len(list(list_arguments(source.spec.input))) else ()


@contextmanager
def _without_log(name: str) -> Iterator[None]:
    """Keep a library from logging the traceback of what it also raises."""
    log = logging.getLogger(name)
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def _list_entries(content: bytes) -> list[str]:
    """Return the names in an archive's table of contents, none where it is no archive; nothing of it runs."""
    try:
        return zipfile.ZipFile(io.BytesIO(content)).namelist()
    except zipfile.BadZipFile:
        return []


def _refuse_training(program: "ExportedProgram", source: Source) -> None:
    """Refuse a program that was exported in training mode: its dropout and statistics are on, and mix samples."""
    graphs = [module.graph for module in program.graph_module.modules() if isinstance(module, torch.fx.GraphModule)]
    for node in itertools.chain.from_iterable(graph.nodes for graph in graphs):
        schema = getattr(node.target, "_schema", None)
        for position, argument in enumerate(schema.arguments if schema else ()):
            value = node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)
            if argument.name in ("train", "training") and value is True:
                found = f"exported in training mode ({node.target} is training)"
                raise source.refuse(found, "a model exported after model.eval()")
