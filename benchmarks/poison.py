"""What one poisonous text in ten costs the callers beside it: none fails, no breaker opens, and their p99 at most doubles.

A text is poisonous to the door, which refuses a token that the model has no embedding for; or to a member, which raises on a batch
with it, first thing or after all its layers, so that the batch is computed again in halves. Clean and poisonous runs take turns
against one server.

    python -m benchmarks.poison --result benchmarks/results/poison-cpu.json
"""

import asyncio
import itertools
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import grpc
import numpy as np
import torch
import typer
import uvloop
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn

from benchmarks import harness
from benchmarks.harness import Columns, Cores, Figure, Pinned, Result, Rounds, Seconds
from benchmarks.loop import TIMEOUT_SECONDS, WARM_SECONDS, Tally, Unary
from twinfer import Client, make_request
from twinfer.v1 import ensemble_pb2

ROWS, WIDTH, LAYERS, TOKENS, CLASSES = 1000, 128, 2, 16, 4
AT_ONCE, AT_LAST = 7, 8
"""The ids on which the member raises."""
KINDS: Mapping[str, str] = {"clean": "", "door": f"w{ROWS}", "member at once": f"w{AT_ONCE}", "member at last": f"w{AT_LAST}"}
"""The word that makes a text poisonous."""
TEXTS, EVERY = 200, 10
MOST_RATIO = 2.0
COLUMNS: Columns = {
    "kind": ("poison", ""), "requests_per_second": ("requests/s", ",.0f"), "p50_ms": ("others' p50 ms", ".2f"),
    "p99_ms": ("others' p99 ms", ".2f"), "ratio": ("p99 / clean", ".2f"), "failed": ("others failed", "d"),
    "ends": ("poison by its end", ""), "opened": ("breakers opened", "d"), "outcome": ("mark", ""),
}  # fmt: skip
TOML = """
    name = "poison"
    version = 1
    task = "classification"
    fusion.method = "weighted_mean"
"""
MEMBER = """
    [members.{name}]
    model = "python:benchmarks.poison:Words"
    input.text = {{ kind = "text", tokenizer = "tokenizer.json", max_tokens = {tokens}, mask = true }}
"""


class Words(nn.Module):
    """A small transformer that raises on two of its words: on one at once, on the other when it is done."""

    def __init__(self) -> None:
        """Draw the weights."""
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(ROWS, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return logits, float32 [texts, classes]; raises ValueError."""
        if (ids == AT_ONCE).any():
            raise ValueError("poison, at once")
        found = self.layers(self.table(ids), src_key_padding_mask=mask == 0)
        logits: Tensor = self.head((found * mask.unsqueeze(-1)).sum(1))
        if (ids == AT_LAST).any():
            raise ValueError("poison, at last")
        return logits


class Texts(Unary):
    """Calls of `Infer` with texts of which every tenth is poisonous, in one of the ways; each answers to its own status."""

    def __init__(self, kind: str) -> None:
        """Serialize the messages."""
        random = np.random.default_rng(0)
        texts = [[f"w{word}" for word in random.integers(10, ROWS, random.integers(4, TOKENS))] for _ in range(TEXTS)]
        self.poison = {number for number in range(TEXTS) if KINDS[kind] and number % EVERY == EVERY // 2}
        for number in self.poison:
            texts[number][2] = KINDS[kind]
        self.messages = [make_request({"text": " ".join(text)}, policy="require_all").SerializeToString() for text in texts]

    async def ask(self, address: str, in_flight: int, tally: Tally) -> None:
        async with grpc.aio.insecure_channel(address) as channel:
            method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(self.method)

            async def call(message: bytes) -> bytes:
                try:
                    await method(message, timeout=TIMEOUT_SECONDS)
                except grpc.RpcError as error:
                    return str(error.code().name).encode()
                return b"OK"

            await self.repeat(call, in_flight, tally)

    def check(self, number: int, reply: bytes) -> int | None:
        return None


@dataclass(frozen=True, slots=True)
class Run:
    """What one run found: the latencies and failures are those of the calls that are not poisonous, `ends` says how those ended."""

    requests_per_second: float
    p50_ms: float
    p99_ms: float
    failed: int
    ends: Counter[str]


def run(kind: str, address: str, in_flight: int, seconds: float) -> Run:
    """Keep so many calls under way for `seconds`, after a short warm-up."""
    return uvloop.run(_run(Texts(kind), address, in_flight, seconds))


async def _run(texts: Texts, address: str, in_flight: int, seconds: float) -> Run:
    tally = Tally()
    asking = asyncio.create_task(texts.ask(address, in_flight, tally))
    await asyncio.wait({asking}, timeout=WARM_SECONDS)
    first, began = len(tally.replies), time.perf_counter()
    await asyncio.wait({asking}, timeout=seconds)
    last, ended = len(tally.replies), time.perf_counter()
    tally.is_over = True
    await asking
    pairs = list(zip(tally.replies[first:last], tally.latencies[first:last], strict=True))
    others = sorted(latency for (number, _), latency in pairs if number not in texts.poison)
    return Run(
        requests_per_second=len(pairs) / (ended - began),
        p50_ms=statistics.median(others) * 1e3,
        p99_ms=others[int(0.99 * len(others))] * 1e3,
        failed=sum(reply != b"OK" for (number, reply), _ in pairs if number not in texts.poison),
        ends=Counter(reply.decode() for (number, reply), _ in pairs if number in texts.poison),
    )


def write_ensemble(folder: Path) -> Path:
    """Write two members that take the same text, and a tokenizer with a word more than they have embeddings."""
    tokenizer = Tokenizer(models.WordLevel({f"w{number}": number for number in range(ROWS + 1)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    toml = TOML + "".join(MEMBER.format(name=name, tokens=TOKENS) for name in ("one", "two"))
    (folder / "ensemble.toml").write_text(toml, encoding="utf-8")
    return folder


def count_opened(address: str) -> int:
    """Count the members whose breaker is not closed."""
    with Client(address) as client:
        return sum(member.breaker_state != ensemble_pb2.BREAKER_STATE_CLOSED for member in client.describe().members)


def summarise(kind: str, runs: Sequence[Run], clean: Sequence[Run], opened: int) -> Figure:
    """Return the medians of one kind's runs; the ratio is of each run to the clean one beside it."""
    ratio = harness.paired([each.p99_ms for each in runs], [each.p99_ms for each in clean])
    ends = sum((each.ends for each in runs), Counter[str]())
    failed = sum(each.failed for each in runs)
    return {
        "kind": kind,
        "requests_per_second": round(statistics.median(each.requests_per_second for each in runs), 1),
        "p50_ms": round(statistics.median(each.p50_ms for each in runs), 3),
        "p99_ms": round(statistics.median(each.p99_ms for each in runs), 3),
        "ratio": round(ratio, 3),
        "failed": failed,
        "opened": opened,
        "ends": ", ".join(f"{count} {end}" for end, count in ends.items()) or "none",
        "outcome": "met" if failed == opened == 0 and ratio <= MOST_RATIO else "missed",
    }


def main(
    result: Result = None,
    seconds: Seconds = 4.0,
    rounds: Rounds = 5,
    in_flight: Annotated[int, typer.Option(min=1, help="Calls under way at all times.")] = 16,
    pinned: Pinned = None,
) -> None:
    """Measure what poison costs those beside it."""
    machine, cores = harness.describe_machine(), Cores.choose(pinned)
    runs: dict[str, list[Run]] = {kind: [] for kind in KINDS}
    opened: Counter[str] = Counter()
    with TemporaryDirectory() as folder, harness.worker(cores.load) as loader:
        arguments = ["--trust-code", "--set", "log_level=error"]
        with harness.serving(write_ensemble(Path(folder)), cores.server, arguments) as (address, _):
            for _, kind in itertools.product(range(rounds), KINDS):
                runs[kind].append(loader.submit(run, kind, address, in_flight, seconds).result())
                opened[kind] += count_opened(address)
    figures = [summarise(kind, found, runs["clean"], opened[kind]) for kind, found in runs.items()]
    setup: dict[str, object] = {"rounds": rounds, "seconds": seconds, "in_flight": in_flight, "one_in": EVERY, "cores": str(cores)}
    harness.report("benchmarks.poison", machine, setup, figures, [harness.tabulate(figures, COLUMNS)], result)


if __name__ == "__main__":
    typer.run(main)
