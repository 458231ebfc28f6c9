"""Accelerations: what makes a member fast at its precision. One function each, found by name in one table.

Each takes a module and the arguments to compile it for, and returns what is called in its place, compiled for every size that
batches have; a CUDA graph can hold all of them. Compiling needs a C++ compiler where the server runs. torch keeps the compiled code
in its own cache (TORCHINDUCTOR_CACHE_DIR) for the next start.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from ..loaders.source import outline
from .precisions import Arguments, Refused

Compiled = Callable[..., object]
Shapes = Sequence[Arguments]
Dynamic = Sequence[Sequence[int]]


def run_eagerly(module: nn.Module, device: torch.device, shapes: Shapes, dynamic: Dynamic) -> Compiled:
    """Return the module as it is; an exported program without the checks of its inputs' shapes, which take long."""
    return module.forward if isinstance(module, fx.GraphModule) else module


def compile_module(module: nn.Module, device: torch.device, shapes: Shapes, dynamic: Dynamic) -> Compiled:
    """Compile with torch's Inductor, parameters frozen into the code, once for one sample and once for any number of them.

    Raises Refused without a compiler, and for modules that torch cannot compile.
    """
    if any(isinstance(part, torch.jit.ScriptModule) for part in module.modules()):
        raise Refused("torch.compile does not look into TorchScript; save the model with torch.export")
    _require_compiler()
    options: dict[str, Any] = {
        "freezing": True,
        "cpp.dynamic_threads": True,  # streams of one thread and of all cores run the same code
        "compile_threads": 1,  # no worker processes, which would outlive the compiling
        "guard_filter_fn": _keep_shape_guards,
    }
    return _compile(module, shapes, dynamic, options=options)


def use_tensorrt(module: nn.Module, device: torch.device, shapes: Shapes, dynamic: Dynamic) -> Compiled:
    """Compile with torch-tensorrt, where it is installed. Not yet run on hardware."""
    if device.type != "cuda":
        raise Refused("TensorRT computes on NVIDIA GPUs; this is a CPU")
    try:
        importlib.import_module("torch_tensorrt")
    except ImportError as error:
        raise Refused(
            f"it needs torch_tensorrt, which cannot be imported ({error}); to install it: pip install torch-tensorrt"
        ) from None
    return _compile(module, shapes, dynamic, backend="torch_tensorrt")


ACCELERATIONS: Mapping[str, Callable[[nn.Module, torch.device, Shapes, Dynamic], Compiled]] = {
    "eager": run_eagerly,
    "compile": compile_module,
    "tensorrt": use_tensorrt,
}
"""By the name that stands in the ensemble's file."""


def _compile(module: nn.Module, shapes: Shapes, dynamic: Dynamic, **how: Any) -> Compiled:
    """Compile `module` for the shapes; raises Refused."""
    try:
        compiled: Compiled = torch.compile(module, **how)
        for arguments in shapes:
            for argument, dimensions in zip(arguments, dynamic, strict=True):
                for dimension in dimensions:
                    if argument.shape[dimension] > 1:
                        torch._dynamo.maybe_mark_dynamic(argument, dimension)
            compiled(*arguments)
    except Exception as error:  # a compiler fails in many ways
        raise Refused(f"it cannot be compiled: {type(error).__name__}: {outline(error)}") from None
    return compiled


def _keep_shape_guards(guards: Any) -> list[bool]:
    """Keep the guards on arguments alone; what else Dynamo guards, such as threads, does not change what is computed."""
    return [guard.guard_type in ("TENSOR_MATCH", "SHAPE_ENV") for guard in guards]


def _require_compiler() -> None:
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        raise Refused(
            "compiling needs a C++ compiler and none is found; install one (apt-get install g++), compile in the image's build "
            "stage and bring torch's cache along (TORCHINDUCTOR_CACHE_DIR), or do without"
        ) from None
