"""Make the digits ensemble: its rows, tokenizer and two trained members, and measure them on the held-out rows.

Run as ``python ensembles/digits/train.py``; it takes seconds on one core and gives the same accuracies on every run.
What ``ensemble.toml`` says about normalising, token limit and weights is read from there, so that members are trained
and measured as they are served. That file and the README's prose are written by hand; all else is made here.
"""

import hashlib
import json
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from members import Language, Vision
from rich.console import Console
from rich.progress import track
from rows import FIT, HELD_OUT, LABELS, TRAIN, Rows, load, read, write
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor, nn

FOLDER = Path(__file__).resolve().parent
SPEC: dict[str, Any] = tomllib.loads((FOLDER / "ensemble.toml").read_text(encoding="utf-8"))
IMAGE, TEXT = SPEC["members"]["vision"]["input"]["image"], SPEC["members"]["language"]["input"]["text"]

LETTERS = "abcdefghijklmnopqrstuvwxyzü"
PAD, UNKNOWN = 0, 1
UNKNOWN_RATE = 0.02  # letters hidden in training, so that a character nobody has seen is read as one that says nothing

SEED = 0
BATCH = 32
LEARNING_RATE = 3e-3
VISION_CHANNELS, VISION_EPOCHS = 4, 12  # few channels and few epochs: good, and well short of what this data allows
LANGUAGE_WIDTH, LANGUAGE_EPOCHS = 24, 40  # many passes over one text per row: it ends surer of itself than it should be


def make_tokenizer() -> Tokenizer:
    """Make the character tokenizer: one id per code point, lower case, 0 for padding, 1 for any unknown character.

    The special names are words of the vocabulary and not added tokens: a text that spells "[PAD]" is five characters.
    """
    vocabulary = {"[PAD]": PAD, "[UNK]": UNKNOWN} | {letter: 2 + place for place, letter in enumerate(LETTERS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    # NFC first: a u followed by a combining diaeresis is the same letter as ü.
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase(), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.enable_padding(pad_id=PAD, pad_token="[PAD]")
    tokenizer.enable_truncation(TEXT["max_tokens"])
    return tokenizer


def pixels(rows: Rows) -> Tensor:
    """Turn images into what the vision member takes, float32 [rows, 1, 8, 8], as the service does."""
    scaled = torch.from_numpy(rows.images).unsqueeze(1).to(torch.float32) / 255
    return (scaled - torch.tensor(IMAGE["mean"]).view(-1, 1, 1)) / torch.tensor(IMAGE["std"]).view(-1, 1, 1)


def characters(texts: Sequence[str], tokenizer: Tokenizer) -> tuple[Tensor, Tensor]:
    """Turn texts into what the language member takes, ids and mask, both int64 [texts, the longest's characters]."""
    codes = tokenizer.encode_batch(list(texts))
    return torch.tensor([code.ids for code in codes]), torch.tensor([code.attention_mask for code in codes])


def train(name: str, member: nn.Module, inputs: tuple[Tensor, ...], labels: Tensor, epochs: int) -> None:
    """Train a member in place with Adam on cross-entropy, in an order drawn anew for every epoch."""
    optimizer = torch.optim.Adam(member.parameters(), LEARNING_RATE)
    for _ in track(range(epochs), description=f"{name:>8}"):
        for batch in torch.split(torch.randperm(len(labels)), BATCH):
            picked = [values[batch] for values in inputs]
            if name == "language":
                hidden = (torch.rand(picked[0].shape) < UNKNOWN_RATE) & (picked[1] == 1)
                picked[0] = picked[0].masked_fill(hidden, UNKNOWN)
            optimizer.zero_grad()
            nn.functional.cross_entropy(member(*picked), labels[batch]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    member.eval().requires_grad_(False)


def export(member: nn.Module, inputs: tuple[Tensor, ...], shapes: tuple[dict[int, Any], ...], path: Path) -> str:
    """Save a member as a program that takes any number of samples, and return the sha256 of the file.

    Example inputs and notes about the source are taken out: the file then holds no pickle and no path of this machine,
    and its digest does not depend on where it was made.
    """
    # Traced with three samples: torch.export takes a size of one for a constant, and then one sample is all it allows.
    program = torch.export.export(member, tuple(values[:3] for values in inputs), dynamic_shapes=shapes)
    program.example_inputs = None
    for node in program.graph.nodes:
        node.meta = {"val": node.meta["val"]} if "val" in node.meta else {}
    torch.export.save(program, path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def measure(tokenizer: Tokenizer) -> dict[str, float]:
    """Read the saved members and the held-out files back, and return each member's accuracy and the fusion's."""
    rows = read(FOLDER / "heldout")
    labels = torch.from_numpy(rows.labels)
    inputs = {"vision": (pixels(rows),), "language": characters(rows.texts, tokenizer)}
    accuracies: dict[str, float] = {}
    pooled = torch.zeros(len(labels), len(LABELS))
    for name, values in inputs.items():
        program = torch.export.load(FOLDER / SPEC["members"][name]["model"]).module()
        beliefs = program(*values).log_softmax(dim=-1)
        accuracies[name] = accuracy(beliefs, labels)
        pooled += SPEC["fusion"]["weights"][name] * beliefs
    return accuracies | {"fused": accuracy(pooled, labels), "rows": len(labels)}


def accuracy(scores: Tensor, labels: Tensor) -> float:
    """Return the share of rows, to four places, whose highest score [rows, classes] stands at the label [rows]."""
    return round((scores.argmax(dim=-1) == labels).double().mean().item(), 4)


def report(accuracies: dict[str, float]) -> None:
    """Write the accuracies to ``accuracies.json`` and into the README's table."""
    (FOLDER / "accuracies.json").write_text(json.dumps(accuracies, indent=2) + "\n", encoding="utf-8")
    readme = FOLDER / "README.md"
    cells = " | ".join(f"{100 * accuracies[name]:.1f} %" for name in ("vision", "language", "fused"))
    table = f"| vision alone | language alone | fused |\n|---|---|---|\n| {cells} |\n"
    marked = re.compile(r"(<!-- accuracies -->\n).*?(<!-- end -->)", re.DOTALL)
    readme.write_text(marked.sub(rf"\g<1>{table}\g<2>", readme.read_text(encoding="utf-8")), encoding="utf-8")


def main() -> None:
    """Make every file of the folder that is not written by hand."""
    torch.set_num_threads(1)  # sums in one order: the same weights on every run
    torch.use_deterministic_algorithms(True)

    tokenizer = make_tokenizer()
    tokenizer.save(str(FOLDER / "tokenizer.json"))
    (FOLDER / "labels.txt").write_text("\n".join(LABELS) + "\n", encoding="utf-8")
    write(FOLDER / "heldout", HELD_OUT)
    write(FOLDER / "fit", FIT)

    rows = load(TRAIN)
    labels = torch.from_numpy(rows.labels)
    images, texts = (pixels(rows),), characters(rows.texts, tokenizer)
    torch.manual_seed(SEED)
    vision = Vision(len(LABELS), VISION_CHANNELS)
    train("vision", vision, images, labels, VISION_EPOCHS)
    torch.manual_seed(SEED)
    language = Language(len(LABELS), tokenizer.get_vocab_size(), LANGUAGE_WIDTH)
    train("language", language, texts, labels, LANGUAGE_EPOCHS)

    samples = torch.export.Dim("samples", min=1, max=1024)
    tokens = torch.export.Dim("tokens", min=1, max=TEXT["max_tokens"])
    padded = {0: samples, 1: tokens}
    digests = {
        "vision.pt2": export(vision, images, ({0: samples},), FOLDER / "vision.pt2"),
        "language.pt2": export(language, texts, (padded, padded), FOLDER / "language.pt2"),
    }

    accuracies = measure(tokenizer)
    report(accuracies)
    console = Console()
    for name in ("vision", "language", "fused"):
        console.print(f"{name:>8}  {100 * accuracies[name]:.1f} % of {accuracies['rows']} held-out rows")
    for name, digest in digests.items():
        console.print(f"sha256 {digest}  {name}", soft_wrap=True)


if __name__ == "__main__":
    main()
