"""The texts that an ensemble itself brings, embedded once: what a request without texts is compared with."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..errors import InvalidEnsemble, quote
from ..spec import EnsembleSpec
from .member import Member


def embed_texts(spec: EnsembleSpec, folder: Path, members: Sequence[Member]) -> Tensor | None:
    """Embed the lines of `fusion.texts` with the member that is compared with the query; raises InvalidEnsemble.

    Gives float32 [texts, features] on the CPU; None where the ensemble brings no texts. Call it in inference mode, with nothing in
    the air.
    """
    if spec.fusion.texts is None:
        return None
    query = spec.fusion.query or next(iter(spec.members))
    member = next((member for member in members if member.name != query and member.spec.output.kind == "embedding"), None)
    if member is None or len(member.inputs) != 1 or member.spec.input[member.inputs[0].name].kind != "text":
        raise InvalidEnsemble("fusion.texts: no member takes a text, and nothing else, to compare with the query's embedding")
    lines = (folder / spec.fusion.texts).read_text(encoding="utf-8-sig").splitlines()
    if not lines:
        raise InvalidEnsemble(f"fusion.texts: found no line in {quote(spec.fusion.texts)}; allowed: one text a line")
    kind, slot = member.request_inputs[0], member.slots[0]
    embedded = []
    for first in range(0, len(lines), member.max_samples):
        samples = [kind.prepare(kind.decode(line)) for line in lines[first : first + member.max_samples]]
        bucket = member.bucket(samples)
        slot.write(samples, bucket)
        slot.copy_in(bucket)
        embedded.append(member.compute(slot, bucket)[: len(samples)].cpu())
    return torch.cat(embedded)
