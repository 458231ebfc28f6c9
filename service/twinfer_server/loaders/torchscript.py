"""TorchScript: `.pt` and `.ts` files as `torch.jit.save` writes them. PyTorch has deprecated it in favour of torch.export."""

import functools
import io
import logging
import warnings

import torch

from .model import LoadedModel, count_bytes
from .source import Source, has_entry, outline

logger = logging.getLogger(__name__)


def load_torchscript(source: Source) -> LoadedModel:
    """Load a TorchScript module onto the device, in evaluation mode; raises UntrustedCode and InvalidEnsemble."""
    content, digest = source.read_program()
    try:
        if not has_entry(content, "/code/"):  # torch.save writes the same kind of archive, without code beside its data
            raise ValueError("it holds no TorchScript; torch.save writes weights or pickled objects, not models")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # said below, once, in the log
            module = torch.jit.load(io.BytesIO(content), map_location=source.device)
        module.eval()
        for parameter in module.parameters():
            parameter.requires_grad_(False)
    except Exception as error:  # torch raises whatever the archive makes it stumble over
        raise source.refuse(
            f"which torch {torch.__version__} cannot read ({outline(error)})",
            "a module saved by torch.jit.save, or better a .pt2 of torch.export.save",
        ) from error
    _say_deprecated(source.spec.model)
    return LoadedModel(module, "torchscript", count_bytes([*module.parameters(), *module.buffers()]), digest)


@functools.cache
def _say_deprecated(model: str) -> None:
    logger.warning("%s is TorchScript, which PyTorch has deprecated; it is served, but save it with torch.export some day", model)
