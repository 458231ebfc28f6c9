"""The two members as torch modules: a CNN that looks at the digit, and a character model that reads the word.

Both are small on purpose and use ordinary operations only, so that they export, move to a GPU, and run on any torch
that can read the export.
"""

import torch
from torch import Tensor, nn


class Vision(nn.Module):
    """Classify one 8 x 8 grey image: two convolutions with few channels, then one linear layer."""

    def __init__(self, classes: int, channels: int) -> None:
        """Make the layers with fresh weights from torch's global generator."""
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(channels, 2 * channels, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.classify = nn.Linear(2 * channels * 2 * 2, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Map float32 [n, 1, 8, 8], scaled to 0..1 and then normalised, to float32 logits [n, classes]."""
        logits: Tensor = self.classify(self.features(image))
        return logits


class Language(nn.Module):
    """Classify a short text: character embeddings, one convolution over three characters, pooling, one linear layer.

    What is padding is multiplied by zero before the convolution and after it. A real character at the end of the text
    therefore sees the same zeros beside it whether padding follows or the tensor ends, and the answer does not depend
    on how far a batch pads. A text without any character gets the linear layer's bias: finite, and nobody's guess.
    """

    def __init__(self, classes: int, characters: int, width: int) -> None:
        """Make the layers with fresh weights from torch's global generator."""
        super().__init__()
        self.embed = nn.Embedding(characters, width)
        self.trigrams = nn.Conv1d(width, 2 * width, 3, padding=1)
        self.classify = nn.Linear(4 * width, classes)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Map int64 ids [n, t] and int64 mask [n, t] (1 = character, 0 = padding) to float32 logits [n, classes]."""
        real = mask.unsqueeze(-1)  # stays int64: a cast would pin the exported program to the device it was traced on
        characters = (self.embed(ids) * real).transpose(1, 2)
        features = torch.relu(self.trigrams(characters)).transpose(1, 2) * real
        mean = features.sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1)
        strongest = features.amax(dim=1)  # features are never negative, so padding's zeros never win
        logits: Tensor = self.classify(torch.cat((mean, strongest), dim=1))
        return logits
