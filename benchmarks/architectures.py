"""Two models that many people serve, in their true shapes, with seeded random weights.

ResNet-18 (He et al. 2016, "Deep Residual Learning") for images of 224 x 224, and the encoder of all-MiniLM-L6-v2 (Wang et al.
2020, "MiniLM"; Reimers and Gurevych 2019, "Sentence-BERT"): BERT with 6 layers, 384 wide, 12 heads, mean pooling.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

WORDS = 30522


class Residual(nn.Module):
    """Two convolutions and a way past them."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(width)
        shape_changes = stride != 1 or channels != width
        past = (nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width)) if shape_changes else ()
        self.past = nn.Sequential(*past)

    def forward(self, x: Tensor) -> Tensor:
        """Add what the convolutions make of `x` to it."""
        inner = self.second_norm(self.second(functional.relu(self.first_norm(self.first(x)))))
        return functional.relu(inner + self.past(x))


class ResNet18(nn.Module):
    """Images float32 [n, 3, 224, 224] to logits float32 [n, 1000]."""

    def __init__(self) -> None:
        super().__init__()
        stem = (nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        blocks, channels = [], 64
        for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            blocks += [Residual(channels, width, stride), Residual(width, width, 1)]
            channels = width
        self.layers = nn.Sequential(*stem, *blocks)
        self.head = nn.Linear(512, 1000)

    def forward(self, images: Tensor) -> Tensor:
        """Classify images."""
        logits: Tensor = self.head(self.layers(images).mean((2, 3)))
        return logits


class Layer(nn.Module):
    """A layer of BERT: attention, two products, each added to what came in, and normalised."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.attention_norm, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Let tokens look at those that `mask`, bool [n, 1, 1, tokens], shows."""
        query, key, value = (
            layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        seen = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)
        x = self.attention_norm(x + self.out(seen))
        normalised: Tensor = self.norm(x + self.down(functional.gelu(self.up(x))))
        return normalised


class MiniLM(nn.Module):
    """Token ids and mask int64 [n, tokens] to embeddings float32 [n, 384], of length 1."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, 384), nn.Embedding(512, 384)
        self.norm = nn.LayerNorm(384)
        self.layers = nn.ModuleList(Layer(384, 12) for _ in range(6))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Embed texts."""
        x = self.norm(self.words(ids) + self.places.weight[: ids.shape[1]])
        seen = (mask != 0)[:, None, None, :]
        for layer in self.layers:
            x = layer(x, seen)
        counted = mask.unsqueeze(-1).to(x.dtype)
        return functional.normalize((x * counted).sum(1) / counted.sum(1), dim=-1)


def make_resnet18() -> nn.Module:
    """Make the classifier of images."""
    torch.manual_seed(0)
    return ResNet18().eval()


def make_minilm() -> nn.Module:
    """Make the encoder of texts."""
    torch.manual_seed(0)
    return MiniLM().eval()
