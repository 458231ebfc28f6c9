"""The members of the pairs: float32, with weights that a seed gives, so that every server computes the same.

Nothing here but torch: servers with environments of their own import it, too.
"""

import time

import torch
from torch import Tensor, nn

CLASSES = 10
WIDTH = 128


class Doubled(nn.Module):
    """Hardly any work: logits that are twice the input, float32 [n, classes]."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2


class Raised(nn.Module):
    """As little: logits that are the input plus one."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1


class Slept(nn.Module):
    """20 ms for a batch of whatever size, without work for the CPU, as a member on a GPU is: logits that are the input."""

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(0.020)
        return x


class Convolutions(nn.Module):
    """Three convolutions of stride 2 on uint8 [n, 3, 64, 64], and the mean of what is left."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        layers: list[nn.Module] = []
        for taken, given in ((3, 32), (32, 64), (64, WIDTH)):
            layers += [nn.Conv2d(taken, given, 3, stride=2, padding=1), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.layers(pixels.float() / 255).mean(dim=(2, 3))
        logits: Tensor = self.head(features)
        return logits


class Transformer(nn.Module):
    """Two layers of four heads on int64 [n, 32] token ids below 1000, and the mean over the tokens."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.embedding = nn.Embedding(1000, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, dim_feedforward=4 * WIDTH, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layers(self.embedding(ids)).mean(dim=1))
        return logits
