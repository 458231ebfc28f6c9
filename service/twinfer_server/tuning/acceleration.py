"""Accelerations: what makes a member fast at its precision. One function each, found by name in one table.

Each is given a module and samples, and gives what is called in its place, compiled for every size that flights have. A capture can
hold all of them. Compiling needs a C++ compiler where the server runs; what was compiled is kept in the cache for the next start.
"""

import contextlib
import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from ..loaders.source import outline
from .refusal import Refused
from .samples import ProbeSamples

Compiled = Callable[..., object]
CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def run_eagerly(module: nn.Module, device: torch.device, samples: ProbeSamples, cache: Path | None) -> Compiled:
    """Call the module as it is; an exported program without the checks of its inputs' shapes, which take long."""
    return module.forward if isinstance(module, fx.GraphModule) else module


def compile_module(module: nn.Module, device: torch.device, samples: ProbeSamples, cache: Path | None) -> Compiled:
    """Compile with torch's Inductor, parameters frozen into the code, once for one sample and once for any number of them.

    Raises Refused without a compiler, and for modules that torch cannot compile.
    """
    if any(isinstance(part, torch.jit.ScriptModule) for part in module.modules()):
        raise Refused("torch.compile does not look into TorchScript; save the model with torch.export")
    with _keeping_in(cache):
        _require_compiler()
        options: dict[str, Any] = {
            "freezing": True,
            "cpp.dynamic_threads": True,  # lanes of one thread and of all cores run the same code
            "compile_threads": 1,  # no worker processes, which would outlive the compiling
            "guard_filter_fn": _keep_shape_guards,
        }
        return _compile(module, samples, options=options)


def use_tensorrt(module: nn.Module, device: torch.device, samples: ProbeSamples, cache: Path | None) -> Compiled:
    """Compile with torch-tensorrt, where it is installed. Not yet run on hardware."""
    if device.type != "cuda":
        raise Refused("TensorRT computes on NVIDIA GPUs; this is a CPU")
    try:
        importlib.import_module("torch_tensorrt")
    except ImportError as error:
        raise Refused(
            f"it needs torch_tensorrt, which cannot be imported ({error}); to install it: pip install torch-tensorrt"
        ) from None
    with _keeping_in(cache):
        return _compile(module, samples, backend="torch_tensorrt")


ACCELERATIONS: Mapping[str, Callable[[nn.Module, torch.device, ProbeSamples, Path | None], Compiled]] = {
    "eager": run_eagerly,
    "compile": compile_module,
    "tensorrt": use_tensorrt,
}
"""By the name that stands in the ensemble's file."""


def _compile(module: nn.Module, samples: ProbeSamples, **how: Any) -> Compiled:
    try:
        compiled: Compiled = torch.compile(module, **how)
        for arguments in samples.shapes:
            for argument, dimensions in zip(arguments, samples.growing, strict=True):
                for dimension in dimensions:
                    if argument.shape[dimension] > 1:
                        torch._dynamo.maybe_mark_dynamic(argument, dimension)
            compiled(*arguments)
    except Exception as error:  # whatever the compiler stumbles over
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
            'stage and bring the cache along, or set acceleration = "eager"'
        ) from None


@contextlib.contextmanager
def _keeping_in(cache: Path | None) -> Iterator[None]:
    """Have Inductor keep what it compiles under `cache`; without one, where it keeps it by itself."""
    before = os.environ.get(CACHE_VARIABLE)
    if cache is not None:
        os.environ[CACHE_VARIABLE] = str(cache)
    try:
        yield
    finally:
        if before is not None:
            os.environ[CACHE_VARIABLE] = before
        elif cache is not None:
            del os.environ[CACHE_VARIABLE]
