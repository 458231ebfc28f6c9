"""timm: architectures by name, for weights that lie in the folder. Nothing is downloaded."""

from torch import nn

from .source import Source, outline


def make_timm(source: Source, name: str) -> nn.Module:
    """Make timm's architecture `name` without weights; raises InvalidEnsemble, with the command where timm is missing."""
    timm = source.import_extra("timm", "timm")
    try:
        module: nn.Module = timm.create_model(name, pretrained=False)
    except Exception as error:  # a name that it does not know, in words of its own
        raise source.refuse(f"which timm {timm.__version__} cannot make ({outline(error)})", "timm:NAME", "architecture") from error
    return module
