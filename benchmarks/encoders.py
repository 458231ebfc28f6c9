"""A pair of realistic shape with seeded random weights: a vision transformer and a text transformer, in two sizes.

`base` has the shapes of ViT-B/16 (Dosovitskiy et al. 2021) and BERT-base (Devlin et al. 2019); `small` is a stand-in for a CPU,
on which each member takes some 20 to 40 ms for one row on one thread.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

WORDS = 2000
FEATURES = 128


@dataclass(frozen=True, slots=True)
class Size:
    """A transformer's shape; `tokens` is the length of its texts."""

    width: int
    heads: int
    vision_layers: int
    text_layers: int
    tokens: int


SIZES = {"small": Size(256, 4, 4, 6, 128), "base": Size(768, 12, 12, 12, 128)}


def _blocks(width: int, heads: int, layers: int) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(width, heads, 4 * width, activation="gelu", batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


class VisionEncoder(nn.Module):
    """Images float32 [n, 3, 224, 224] to embeddings float32 [n, 128], by patches of 16 x 16."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, size.width, 16, 16)
        self.first = nn.Parameter(torch.randn(1, 1, size.width))
        self.places = nn.Parameter(torch.randn(1, 197, size.width) * 0.02)
        self.blocks = _blocks(size.width, size.heads, size.vision_layers)
        self.head = nn.Linear(size.width, FEATURES)

    def forward(self, images: Tensor) -> Tensor:
        """Embed images."""
        patches = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.first.expand(len(images), -1, -1), patches], dim=1) + self.places
        embedding: Tensor = self.head(self.blocks(tokens)[:, 0])
        return embedding


class TextEncoder(nn.Module):
    """Token ids int64 [n, tokens] to embeddings float32 [n, 128]."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, size.width)
        self.places = nn.Parameter(torch.randn(1, size.tokens, size.width) * 0.02)
        self.blocks = _blocks(size.width, size.heads, size.text_layers)
        self.head = nn.Linear(size.width, FEATURES)

    def forward(self, ids: Tensor) -> Tensor:
        """Embed texts."""
        tokens = self.words(ids) + self.places
        embedding: Tensor = self.head(self.blocks(tokens).mean(1))
        return embedding


def _seeded(kind: type[nn.Module], size: str) -> nn.Module:
    torch.manual_seed(0)
    return kind(SIZES[size]).eval()


def make_small_vision() -> nn.Module:
    """Make the vision encoder for a CPU."""
    return _seeded(VisionEncoder, "small")


def make_small_text() -> nn.Module:
    """Make the text encoder for a CPU."""
    return _seeded(TextEncoder, "small")


def make_base_vision() -> nn.Module:
    """Make the encoder of ViT-B/16's shape."""
    return _seeded(VisionEncoder, "base")


def make_base_text() -> nn.Module:
    """Make the encoder of BERT-base's shape."""
    return _seeded(TextEncoder, "base")
