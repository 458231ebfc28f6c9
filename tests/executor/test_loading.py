"""Loading an ensemble: what is refused, with which remedy; what members share; what overlaps on how many cores."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.models import NAN_BELOW, Opinion, as_any, chance, edit_spec, load_members, number, register, write_members
from tests.servers import ROOT, running, write_ensemble
from twinfer import Client, MemberState
from twinfer_server.errors import InvalidEnsemble, InvalidInput
from twinfer_server.types import InferRequest

Answer = Callable[..., object]


class Scripted(nn.Module):
    """Answers by a function of a batch."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, *x: Tensor) -> object:
        return self.answer(*x)


def pair_of(x: Tensor) -> Tensor:
    return torch.cat([x, -x], dim=1)


def one_at_a_time(x: Tensor) -> Tensor:
    if len(x) != 1:
        raise ValueError(f"expected 1 sample, found {len(x)}")
    return pair_of(x)


def write_opinions(folder: Path, head: str = "") -> Path:
    return write_members(folder, {"left": Opinion(), "right": Opinion()}, head)


REFUSED: dict[str, tuple[Answer, str]] = {
    "one sample at a time": (
        one_at_a_time,
        r"answers 1 sample and raises on twice the same: ValueError: expected 1 sample, found 2; it was given float32 \[2, 1\]$",
    ),
    "samples that are normalised together": (lambda x: pair_of(x - x.mean(0)), "mixes its samples: put it into evaluation mode"),
    "samples that see the one before": (lambda x: pair_of(x.cumsum(0)), "mixes its samples"),
    "one answer for the whole batch": (lambda x: pair_of(x).mean(0, keepdim=True), r"gave an output of shape \[1, 2\]"),
    "no dimension for the samples": (lambda x: x.sum(), r"gave an output of shape \[\]; allowed: \[1\], one output"),
    "more than classes": (lambda x: pair_of(x).reshape(-1, 1, 2), r"output has shape \[1, 2\]; allowed: \[classes\]"),
    "a class instead of probabilities": (lambda x: pair_of(x).argmax(1), r"output has shape \[\]; allowed: \[classes\]"),
    "no answer at all": (lambda x: x / as_any("nothing"), "raised on one sample: TypeError"),
    "no tensor": (lambda x: x.tolist(), "finds no tensor"),
}


@pytest.mark.parametrize(("answer", "text"), REFUSED.values(), ids=REFUSED)
def test_a_model_that_cannot_share_batches_is_refused_with_the_remedy(tmp_path: Path, answer: Answer, text: str) -> None:
    folder = write_members(tmp_path, {"good": Opinion(), "bad": Scripted(answer)})
    with pytest.raises(InvalidEnsemble, match=f"(?i)^members.bad.*{text}"):
        load_members(folder)


def test_a_model_exported_with_a_fixed_batch_is_refused_with_the_remedy(tmp_path: Path) -> None:
    program = torch.export.export(Scripted(pair_of), (torch.zeros(1, 1),))
    torch.export.save(program, tmp_path / "fixed.pt2")
    with pytest.raises(InvalidEnsemble, match=r"members.fixed.model: the member answers 1 sample .*dynamic_shapes"):
        load_members(write_members(tmp_path, {"fixed": "fixed.pt2", "good": Opinion()}))


def list_warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize("value", [torch.nan, -torch.inf, torch.inf], ids=["NaN", "minus infinity", "infinity"])
def test_a_model_that_is_not_finite_for_some_samples_is_served_all_the_same(tmp_path: Path, value: float) -> None:
    def sometimes(x: Tensor) -> Tensor:
        return pair_of(torch.where(x > 0.3, value, x))

    ensemble = load_members(write_members(tmp_path, {"good": Opinion(), "odd": Scripted(sometimes)}))
    assert not sometimes(torch.tensor(ensemble.members[1].example(1, 0)[0])).isfinite().all()  # the check does see such a sample
    assert [member.output_shape for member in ensemble.members] == [(2,), (2,)]


def test_a_model_that_is_finite_for_no_sample_is_served_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_members(write_members(tmp_path, {"good": Opinion(), "odd": Scripted(lambda x: pair_of(x * torch.nan))}))
    [warning] = list_warnings(caplog)
    assert warning.startswith("member odd answered all of 3 made-up samples with NaN or an infinity")


@pytest.mark.parametrize("is_deterministic", [True, False])
def test_a_deterministic_model_that_answers_by_the_position_of_a_sample_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, is_deterministic: bool
) -> None:
    def last_otherwise(x: Tensor) -> Tensor:  # as kernels do that compute four samples at a time
        return pair_of(x * torch.where(torch.arange(len(x)) < len(x) // 4 * 4, 1.0, 1.0 + 2e-7).unsqueeze(1))

    members = {"good": Opinion(), "placed": Scripted(last_otherwise)}
    load_members(write_members(tmp_path, members, f"deterministic = {str(is_deterministic).lower()}", max_batch_size=7))
    found = [text[:49] for text in list_warnings(caplog)]
    assert found == ["member placed answers the same sample differently"] * is_deterministic


def test_members_with_different_numbers_of_classes_are_refused(tmp_path: Path) -> None:
    three = Scripted(lambda x: torch.cat([x, x, x], dim=1))
    with pytest.raises(InvalidEnsemble, match=r"members: found \{'two': 2, 'three': 3\} classes; allowed: the same number"):
        load_members(write_members(tmp_path, {"two": Opinion(), "three": three}))


@pytest.mark.parametrize("labels", ["yes\n", "yes\nno\nmaybe\n"], ids=["too few", "too many"])
def test_labels_must_be_as_many_as_the_classes(tmp_path: Path, labels: str) -> None:
    folder = write_opinions(tmp_path, 'labels = "labels.txt"')
    (folder / "labels.txt").write_text(labels, encoding="utf-8")
    with pytest.raises(InvalidEnsemble, match=rf"labels: {labels.count(chr(10))} labels; .* 2 classes"):
        load_members(folder)


UNFIT = {
    "a GPU beside a CPU": ("[members.right]", '[members.right]\ndevice = "cuda:1"', "members.right.device: .*none, .* is on cpu"),
    "an unknown method": ('"weighted_mean"', '"guessing"', "fusion.method: found 'guessing'; allowed for .*: 'weighted_mean'"),
    "a method for another task": ('"weighted_mean"', '"concatenation"', "found 'concatenation', a method for task 'embedding'"),
    "weights for a method without": (
        '"weighted_mean"',
        '"maximum"\nweights = { left = 1.0 }',
        "fusion.weights: .*takes no weights",
    ),
}


@pytest.mark.parametrize(("old", "new", "text"), UNFIT.values(), ids=UNFIT)
def test_what_does_not_fit_the_device_or_the_task_is_refused(tmp_path: Path, old: str, new: str, text: str) -> None:
    with pytest.raises(InvalidEnsemble, match=text):
        load_members(edit_spec(write_opinions(tmp_path), old, new))


def write_kind(folder: Path, kind: str, answer: Answer) -> Path:
    folder = write_members(folder, {"odd": Scripted(answer)})
    return edit_spec(folder, "[fusion]", f'[members.odd.output]\nkind = "{kind}"\n[fusion]')


KINDS: dict[str, tuple[str, Answer, str]] = {
    "probabilities that sum to more": ("probabilities", lambda x: x.sigmoid().repeat(1, 3), "a sample's sum to"),
    "probabilities below 0": ("probabilities", pair_of, r"it gives -[\d.]+ to [\d.]+; allowed: what it gives, 'logits'"),
    "logits after a softmax": ("logits", lambda x: pair_of(x).softmax(1), "sum to 1; allowed: what it gives, 'probabilities'"),
}


@pytest.mark.parametrize(("kind", "answer", "text"), KINDS.values(), ids=KINDS)
def test_an_output_that_is_not_what_the_file_calls_it_is_refused(tmp_path: Path, kind: str, answer: Answer, text: str) -> None:
    with pytest.raises(InvalidEnsemble, match=rf"^members\.odd\.output\.kind: found '{kind}', and .*{text}"):
        load_members(write_kind(tmp_path, kind, answer))


def test_probabilities_that_are_some_are_served(tmp_path: Path) -> None:
    ensemble = load_members(write_kind(tmp_path, "probabilities", lambda x: pair_of(x).softmax(1)))
    assert ensemble.members[0].output_shape == (2,)


def test_a_range_that_the_member_does_not_bear_shows_when_it_is_checked(tmp_path: Path) -> None:
    table = nn.Embedding(10, 2)

    def load_range(bounds: str) -> tuple[int, ...]:
        folder = write_members(tmp_path, {"table": Scripted(lambda x: table(x)[:, 0])})
        return load_members(edit_spec(folder, '"float32"', f'"int64"\n{bounds}')).members[0].output_shape

    with pytest.raises(InvalidEnsemble, match=r"members.table.input.table.max: found 10; allowed: 0 to 9"):
        load_range("min = 0\nmax = 10")
    assert load_range("min = 0\nmax = 9") == (2,)
    with pytest.raises(InvalidEnsemble, match=r"members.table.input.table.min: found '0'; allowed: a valid number"):
        load_range('min = "0"')


@pytest.mark.parametrize("execution", ["serial", "streams"])
def test_three_members_compute_together(tmp_path: Path, execution: str) -> None:
    models = {"one": Opinion(), "two": Opinion(), "three": Opinion()}
    folder = write_members(tmp_path, models, f'execution = "{execution}"\npolicy = "best_effort"')
    with running(folder, trust_code=True) as server, Client(server.address) as client:
        whole = client.infer({"one": number(1), "two": number(2), "three": number(-3)}, timeout=60)
        assert whole.probability == pytest.approx(chance(1, 2, -3), abs=1e-6)
        part = client.infer({"one": number(1), "three": number(NAN_BELOW - 1), "two": number(2)}, timeout=60)
        assert part.members["three"].state is MemberState.FAILED
        assert part.probability == pytest.approx(chance(1, 2), abs=1e-6)
        assert [member.weight for member in part.members.values()] == pytest.approx([0.5, 0.5, 0])


class CountedText(str):
    """A text that counts how often it is encoded, which decoding an input does once."""

    encodings = 0

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        type(self).encodings += 1
        return super().encode(encoding, errors)


TOKENIZER = """{"version": "1.0", "model": {"type": "WordLevel", "vocab": {"five": 5, "six": 6}, "unk_token": "six"}}"""


def test_an_input_that_two_members_share_is_decoded_once_and_prepared_for_both(tmp_path: Path) -> None:
    toml = ['name = "shared"', "version = 1", 'task = "classification"', "[fusion]", 'method = "weighted_mean"']
    for name, tokens in (("short", 2), ("long", 5)):
        model = register(Scripted(lambda ids: pair_of(ids.float().mean(1, keepdim=True))))
        toml += [f"[members.{name}]", f'model = "{model}"', f"[members.{name}.input.text]", 'kind = "text"']
        toml += ['tokenizer = "tokenizer.json"', f"max_tokens = {tokens}"]
    ensemble = load_members(write_ensemble(tmp_path, "\n".join(toml), {"tokenizer.json": TOKENIZER}))
    samples = ensemble.processor.prepare(InferRequest({"text": CountedText("five")}, arrived_at=0.0))
    assert CountedText.encodings == 1
    assert [(samples[index][0].shape, samples[index][0][0, 0]) for index in (0, 1)] == [((1, 2), 5), ((1, 5), 5)]


def test_the_inputs_of_a_member_must_bring_as_many_samples(tmp_path: Path) -> None:
    toml = ['name = "several"', "version = 1", 'task = "classification"', "[fusion]", 'method = "weighted_mean"']
    toml += ["[members.both]", f'model = "{register(Scripted(lambda x, y: pair_of(x + y)))}"']
    for name in ("x", "y"):
        toml += [f"[members.both.input.{name}]", 'kind = "tensor"', 'dtype = "float32"', "shape = [1]", "max_samples = 3"]
    toml += ["[members.both.output]", 'kind = "features"', "[members.fused]", f'model = "{register(Opinion())}"']
    toml += ["[members.fused.input.z]", 'kind = "tensor"', 'dtype = "float32"', "shape = [1]"]
    ensemble = load_members(write_ensemble(tmp_path, "\n".join(toml)))
    three, two = np.zeros((3, 1), np.float32), np.zeros((2, 1), np.float32)
    assert [len(array) for array in ensemble.processor.prepare(InferRequest({"x": three, "y": three}, arrived_at=0.0))[0]] == [3, 3]
    with pytest.raises(InvalidInput, match=r"inputs: found {'x': 3, 'y': 2} samples for member 'both'; allowed: as many of each"):
        ensemble.processor.prepare(InferRequest({"x": three, "y": two}, arrived_at=0.0))


HEAVY = """
    import torch

    def heavy():
        weight = torch.rand(192, 192) / 192

        def model(x):
            work = x.new_ones(192, 192)
            for _ in range(40):
                work = work @ weight
            return torch.cat([x, -x], dim=1) + 0 * work.sum()

        return model
"""

MEASURE = """
    import os, statistics, sys
    from pathlib import Path

    cores = int(sys.argv[2])
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])

    import torch
    from tests.models import load_members
    from twinfer_server.executor import Bucket, run_synthetic

    torch.set_num_threads(1)
    ensemble = load_members(Path(sys.argv[1]), "streams")
    ratios = []
    with torch.inference_mode():
        for _ in range(25):
            both, left, right = (run_synthetic(ensemble, Bucket(1), members) for members in ((0, 1), (0,), (1,)))
            ratios.append((left.join_seconds + right.join_seconds) / both.join_seconds)
    print(statistics.median(ratios))
"""


def measure_overlap(folder: Path, cores: int) -> float:
    """Give the overlap ratio of two equal members that compute all the time, on so many cores."""
    write_members(folder, {"left": "python:heavy.py:heavy", "right": "python:heavy.py:heavy"}, max_batch_size=1)
    (folder / "heavy.py").write_text(dedent(HEAVY), encoding="utf-8")
    command = [sys.executable, "-c", dedent(MEASURE), str(folder), str(cores)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return float(done.stdout)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot pin a process to a core")
def test_on_one_core_members_do_not_overlap_and_the_ratio_says_so(tmp_path: Path) -> None:
    """On two idle cores the same two members read 1.8 to 2.0; on two that others use too, anything from 1 upwards."""
    assert 0.6 <= measure_overlap(tmp_path, cores=1) <= 1.5  # 1, but for what others do on that core meanwhile
