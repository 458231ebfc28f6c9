"""Precisions, the numbers that a member computes in, and accelerations, what makes it fast at them: one function and name each.

A precision takes a copy of the module, which it may change, and returns the module to call in its place; inputs stay as they are,
and the member turns the outputs into float32. `fp32` also lays convolutions out with their channels last.

An acceleration takes that module and the arguments to compile it for, and returns what is called in its place, compiled for every
size that batches have; a CUDA graph can hold all of them. Compiling needs a C++ compiler where the server runs. torch keeps the
compiled code in its own cache (TORCHINDUCTOR_CACHE_DIR) for the next start.
"""

import functools
import importlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from ..errors import outline

logger = logging.getLogger(__name__)

Arguments = tuple[Tensor, ...]
"""What a model is called with."""
Compiled = Callable[..., object]


@dataclass(frozen=True, slots=True, eq=False)
class CalibrationSamples:
    """Made-up samples of one member, on its device, in the buffers that it is served from.

    `largest`: the arguments of as many samples as the error is measured on.
    `shapes`: the arguments that the model is compiled for; their dimensions in `dynamic`, argument by argument, stand for any size.
    `read` returns the outputs that count of what the model returns, float32 [samples, ...] each.
    """

    largest: Arguments
    shapes: tuple[Arguments, ...]
    dynamic: Sequence[Sequence[int]]
    read: Callable[[object], list[Tensor]]


class Refused(Exception):
    """A precision or an acceleration that this model cannot have here; the text says why, and the remedy if there is one."""

    @classmethod
    def after(cls, what: str, error: Exception) -> "Refused":
        """Make the refusal that an error of torch, of another library or of the member's own code leads to."""
        return cls(f"{what}: {type(error).__name__}: {outline(error)}")


class Wrapped(nn.Module):
    """A module that a function calls: `call(module, *arguments)`."""

    def __init__(self, module: nn.Module, call: Callable[..., object]) -> None:
        """Take over the module as it is."""
        super().__init__()
        self.module = module
        self.call = call

    def forward(self, *arguments: Tensor) -> object:
        """Return what the function returns."""
        return self.call(self.module, *arguments)


def call_cast(dtype: torch.dtype, module: nn.Module, *arguments: Tensor) -> object:
    """Call a module whose parameters have been cast, with its floats cast alike."""
    return module(*(value.to(dtype) if value.is_floating_point() else value for value in arguments))


def call_under_autocast(dtype: torch.dtype, module: nn.Module, *arguments: Tensor) -> object:
    """Call a module of float32 parameters that torch casts at each operation: slower than a cast, and goes with any module."""
    # The cache of cast weights would be filled while a CUDA graph is captured, from memory that only the graph owns.
    with torch.autocast(arguments[0].device.type, dtype, cache_enabled=False):
        return module(*arguments)


def call_in_tf32(module: nn.Module, *arguments: Tensor) -> object:
    """Call a module whose float32 products CUDA may round to TF32.

    The setting belongs to the process. It is changed around the call, on the launch thread; CUDA graphs keep it.
    """
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    products.allow_tf32 = convolutions.allow_tf32 = True
    try:
        return module(*arguments)
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before


def use_fp32(module: nn.Module, example: Arguments) -> nn.Module:
    """Keep float32, with the weights of convolutions laid out channels last: all kinds of convolutions compute faster with them."""
    if any(parameter.dim() == 4 for parameter in module.parameters()):
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's own stubs lack it
    return module


def use_tf32(module: nn.Module, example: Arguments) -> nn.Module:
    """Keep float32 and multiply in TF32; raises Refused where the device has no such products."""
    _require_gpu(example, "TF32", (8, 0), "8.0 (Ampere)")
    return Wrapped(use_fp32(module, example), call_in_tf32)


def use_half(dtype: torch.dtype, module: nn.Module, example: Arguments) -> nn.Module:
    """Cast parameters and inputs to `dtype`; call a module that cannot be cast under autocast instead. Raises Refused."""
    try:
        for part in module.modules():
            if isinstance(part, fx.GraphModule):
                _cast_program(part, dtype)
        cast = Wrapped(use_fp32(module.to(dtype), example), functools.partial(call_cast, dtype))
        cast(*example)
    except Exception as error:  # torch's, or the member's own
        if not isinstance(error, RuntimeError) or isinstance(module, torch.jit.ScriptModule):
            raise Refused.after(f"it cannot be cast to {dtype}", error) from None
        logger.info("%s is not cast, but computes under autocast: %s", type(module).__name__, outline(error))
        module.float()  # what was rounded stays so; autocast would round it all the same
        return Wrapped(module, functools.partial(call_under_autocast, dtype))
    return cast


def use_torchao(config: str, module: nn.Module, example: Arguments) -> nn.Module:
    """Quantise the linear layers as torchao's `config` says; raises Refused where the device or the module cannot."""
    if config.startswith("Float8"):
        _require_gpu(example, "FP8", (8, 9), "8.9 (Ada, Hopper)")
    if isinstance(module, torch.jit.ScriptModule | fx.GraphModule):
        raise Refused("its layers are gone: a traced or exported program has products, not nn.Linear layers to quantise")
    if not any(isinstance(layer, nn.Linear) for layer in module.modules()):
        raise Refused("it has no nn.Linear layers, and others are not quantised")
    logging.getLogger("torchao").setLevel(logging.ERROR)  # it warns of parts of its own that this torch or device lacks
    quantization = _import_module("torchao.quantization", "pip install 'twinfer[quantize]'")
    try:
        quantization.quantize_(module, getattr(quantization, config)(), device=example[0].device)
        module(*example)
    except Exception as error:  # torchao fails in many ways
        raise Refused.after("torchao cannot quantise it", error) from None
    return module


PRECISIONS: Mapping[str, Callable[[nn.Module, Arguments], nn.Module]] = {
    "fp32": use_fp32,
    "tf32": use_tf32,
    "bf16": functools.partial(use_half, torch.bfloat16),
    "fp16": functools.partial(use_half, torch.float16),
    "int8_weight_only": functools.partial(use_torchao, "Int8WeightOnlyConfig"),
    "int8_dynamic": functools.partial(use_torchao, "Int8DynamicActivationInt8WeightConfig"),
    "fp8": functools.partial(use_torchao, "Float8DynamicActivationFloat8WeightConfig"),
}
"""By the name that stands in the ensemble's file."""


def run_eagerly(module: nn.Module, samples: CalibrationSamples) -> Compiled:
    """Return the module as it is; an exported program without the checks of its inputs' shapes, which take long."""
    return module.forward if isinstance(module, fx.GraphModule) else module


def compile_module(module: nn.Module, samples: CalibrationSamples) -> Compiled:
    """Compile with torch's Inductor, parameters frozen into the code, once for one sample and once for any number of them.

    Raises Refused without a compiler, and for modules that torch cannot compile.
    """
    if any(isinstance(part, torch.jit.ScriptModule) for part in module.modules()):
        raise Refused("torch.compile does not look into TorchScript; save the model with torch.export")
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        raise Refused(
            "compiling needs a C++ compiler and none is found; install one (apt-get install g++), compile in the image's build "
            "stage and bring torch's cache along (TORCHINDUCTOR_CACHE_DIR), or do without"
        ) from None
    options: dict[str, Any] = {
        "freezing": True,
        "cpp.dynamic_threads": True,  # streams of one thread and of all cores run the same code
        "compile_threads": 1,  # no worker processes, which would outlive the compiling
        # Guards on arguments alone: what else Dynamo guards, such as threads, does not change what is computed.
        "guard_filter_fn": lambda guards: [guard.guard_type in ("TENSOR_MATCH", "SHAPE_ENV") for guard in guards],
    }
    return _compile(module, samples, options=options)


def use_tensorrt(module: nn.Module, samples: CalibrationSamples) -> Compiled:
    """Compile with torch-tensorrt, where it is installed. Not yet run on hardware."""
    if samples.largest[0].device.type != "cuda":
        raise Refused("TensorRT computes on NVIDIA GPUs; this is a CPU")
    _import_module("torch_tensorrt", "pip install torch-tensorrt")
    return _compile(module, samples, backend="torch_tensorrt")


ACCELERATIONS: Mapping[str, Callable[[nn.Module, CalibrationSamples], Compiled]] = {
    "eager": run_eagerly,
    "compile": compile_module,
    "tensorrt": use_tensorrt,
}
"""By the name that stands in the ensemble's file."""


def _require_gpu(example: Arguments, numbers: str, capability: tuple[int, int], since: str) -> None:
    """Raise Refused where the device does not multiply such numbers: a CPU, or a GPU from before `capability`."""
    device = example[0].device
    if device.type != "cuda":
        raise Refused(f"{numbers} products need an NVIDIA GPU; this is a CPU")
    if torch.cuda.get_device_capability(device) < capability:
        raise Refused(f"{numbers} products need an NVIDIA GPU of compute capability {since} or newer")


def _import_module(name: str, install: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise Refused(f"it needs {package}, which cannot be imported ({error}); to install it: {install}") from None


def _cast_program(program: fx.GraphModule, dtype: torch.dtype) -> None:
    """Replace the float32 that an export has written into a program."""
    for node in list(program.graph.nodes):
        if "_assert_tensor_metadata" in str(node.target):
            program.graph.erase_node(node)
            continue
        node.args = map_aggregate(node.args, lambda value: dtype if value is torch.float32 else value)
        node.kwargs = map_aggregate(node.kwargs, lambda value: dtype if value is torch.float32 else value)
    program.recompile()


def _compile(module: nn.Module, samples: CalibrationSamples, **how: Any) -> Compiled:
    """Compile `module` for the shapes; raises Refused."""
    try:
        compiled: Compiled = torch.compile(module, **how)
        for arguments in samples.shapes:
            for argument, dimensions in zip(arguments, samples.dynamic, strict=True):
                for dimension in dimensions:
                    if argument.shape[dimension] > 1:
                        torch._dynamo.maybe_mark_dynamic(argument, dimension)
            compiled(*arguments)
    except Exception as error:  # a compiler fails in many ways
        raise Refused.after("it cannot be compiled", error) from None
    return compiled
