"""Precisions: the numbers that a member computes in. One function each, found by name in one table.

Each takes a copy of the module, which it may change, and returns the module to call in its place; inputs stay as they are, and the
member turns the outputs into float32. `fp32` also lays convolutions out with their channels last, for what accelerates them.
"""

import functools
import importlib
import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from ..loaders.source import outline

logger = logging.getLogger(__name__)

Arguments = tuple[Tensor, ...]
"""What a model is called with."""

INSTALL = "pip install 'twinfer[quantize]'"


class Refused(Exception):
    """A precision or an acceleration that this model cannot have here; the text says why, and the remedy if there is one."""


class Cast(nn.Module):
    """A module whose parameters have another float dtype, to which floats among its arguments are cast."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        """Take over a module that has been cast."""
        super().__init__()
        self.module = module
        self.dtype = dtype

    def forward(self, *arguments: Tensor) -> object:
        """Cast the arguments that are floats and call the module."""
        return self.module(*(value.to(self.dtype) if value.is_floating_point() else value for value in arguments))


class Autocast(nn.Module):
    """A module of float32 parameters that torch casts at each operation; slower than `Cast`, and goes with any module."""

    def __init__(self, module: nn.Module, dtype: torch.dtype, device_type: str) -> None:
        """Take over the module as it is."""
        super().__init__()
        self.module = module
        self.dtype = dtype
        self.device_type = device_type

    def forward(self, *arguments: Tensor) -> object:
        """Call the module inside torch's autocast."""
        # The cache of cast weights would be filled while a CUDA graph is captured, from memory that only the graph owns.
        with torch.autocast(self.device_type, self.dtype, cache_enabled=False):
            return self.module(*arguments)


class TensorFloats(nn.Module):
    """A module whose float32 products CUDA may round to TF32.

    The setting belongs to the process. It is changed around the call, on the launch thread; CUDA graphs keep it.
    """

    def __init__(self, module: nn.Module) -> None:
        """Take over the module as it is."""
        super().__init__()
        self.module = module

    def forward(self, *arguments: Tensor) -> object:
        """Call the module with TF32 allowed."""
        products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
        before = products.allow_tf32, convolutions.allow_tf32
        products.allow_tf32 = convolutions.allow_tf32 = True
        try:
            return self.module(*arguments)
        finally:
            products.allow_tf32, convolutions.allow_tf32 = before


def use_fp32(module: nn.Module, device: torch.device, example: Arguments) -> nn.Module:
    """Keep float32, with convolutions laid out channels last."""
    return lay_out(module)


def use_tf32(module: nn.Module, device: torch.device, example: Arguments) -> nn.Module:
    """Keep float32 and multiply in TF32; raises Refused where the device has no such products."""
    if device.type != "cuda":
        raise Refused("TF32 is a kind of product that NVIDIA GPUs have; this is a CPU")
    if torch.cuda.get_device_capability(device) < (8, 0):
        raise Refused("TF32 needs an NVIDIA GPU of compute capability 8.0 (Ampere) or newer")
    return TensorFloats(lay_out(module))


def use_half(dtype: torch.dtype, module: nn.Module, device: torch.device, example: Arguments) -> nn.Module:
    """Cast parameters and inputs to `dtype`; call a module that cannot be cast under autocast instead. Raises Refused."""
    try:
        cast = Cast(_cast(module, dtype), dtype)
        cast(*example)
    except Exception as error:  # torch's, or the member's own
        why = outline(error)
        if not isinstance(error, RuntimeError) or isinstance(module, torch.jit.ScriptModule):
            raise Refused(f"it cannot be cast to {dtype}: {type(error).__name__}: {why}") from None
        logger.info("%s is not cast, but computes under autocast: %s", type(module).__name__, why)
        module.float()  # what was rounded stays so; autocast would round it all the same
        return Autocast(module, dtype, device.type)
    return cast


def use_torchao(config: str, module: nn.Module, device: torch.device, example: Arguments) -> nn.Module:
    """Quantise the linear layers as torchao's `config` says; raises Refused where the device or the module cannot."""
    if config.startswith("Float8"):
        if device.type != "cuda":
            raise Refused("FP8 products need an NVIDIA GPU; this is a CPU")
        if torch.cuda.get_device_capability(device) < (8, 9):
            raise Refused("FP8 products need an NVIDIA GPU of compute capability 8.9 (Ada, Hopper) or newer")
    if isinstance(module, torch.jit.ScriptModule | fx.GraphModule):
        raise Refused("its layers are gone: a traced or exported program has products, not nn.Linear layers to quantise")
    if not any(isinstance(layer, nn.Linear) for layer in module.modules()):
        raise Refused("it has no nn.Linear layers, and others are not quantised")
    quantization = _import_torchao()
    try:
        quantization.quantize_(module, getattr(quantization, config)(), device=device)
        module(*example)
    except Exception as error:  # torchao fails in many ways
        raise Refused(f"torchao cannot quantise it: {type(error).__name__}: {outline(error)}") from None
    return module


def lay_out(module: nn.Module) -> nn.Module:
    """Lay the weights of convolutions out channels last, with which all kinds of convolutions compute faster."""
    if any(parameter.dim() == 4 for parameter in module.parameters()):
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's own stubs lack it
    return module


PRECISIONS: Mapping[str, Callable[[nn.Module, torch.device, Arguments], nn.Module]] = {
    "fp32": use_fp32,
    "tf32": use_tf32,
    "bf16": functools.partial(use_half, torch.bfloat16),
    "fp16": functools.partial(use_half, torch.float16),
    "int8_weight_only": functools.partial(use_torchao, "Int8WeightOnlyConfig"),
    "int8_dynamic": functools.partial(use_torchao, "Int8DynamicActivationInt8WeightConfig"),
    "fp8": functools.partial(use_torchao, "Float8DynamicActivationFloat8WeightConfig"),
}
"""By the name that stands in the ensemble's file."""


def _cast(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Cast a module's floats; in an exported program also those dtypes that the export has written into it."""
    for part in module.modules():
        if isinstance(part, fx.GraphModule):
            for node in list(part.graph.nodes):
                if "_assert_tensor_metadata" in str(node.target):
                    part.graph.erase_node(node)
                    continue
                node.args = map_aggregate(node.args, lambda value: dtype if value is torch.float32 else value)
                node.kwargs = map_aggregate(node.kwargs, lambda value: dtype if value is torch.float32 else value)
            part.recompile()
    return lay_out(module.to(dtype))


def _import_torchao() -> Any:
    logging.getLogger("torchao").setLevel(logging.ERROR)  # it warns of parts of its own that this torch or device lacks
    try:
        return importlib.import_module("torchao.quantization")
    except ImportError as error:
        raise Refused(f"it needs torchao, which cannot be imported ({error}); to install it: {INSTALL}") from None
