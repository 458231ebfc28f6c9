"""Every task from request to answer, through a real server, by members whose answers one can check by eye."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.models import register
from tests.servers import running, write_ensemble
from twinfer import Client, Response, TwinferError
from twinfer.errors import InvalidOption, MissingInput, NotFinite
from twinfer_server.errors import InvalidEnsemble

TENSOR_INPUT = """
    [members.{name}]
    model = "{model}"
    [members.{name}.input.{name}]
    kind = "tensor"
    dtype = "float32"
    shape = [{size}]
    [members.{name}.output]
    kind = "{output}"
"""


@contextmanager
def serving(folder: Path, toml: str, files: dict[str, str] | None = None) -> Iterator[Client]:
    head = 'name = "tasks"\nversion = 1\npolicy = "best_effort"\n'
    with (
        running(write_ensemble(folder, head + toml, files), trust_code=True) as server,
        Client(server.address, attempts=1) as client,
    ):
        yield client


def members(output: str, size: int = 2, **models: nn.Module) -> str:
    parts = [TENSOR_INPUT.format(name=name, model=register(model), size=size, output=output) for name, model in models.items()]
    return "".join(parts)


class Echo(nn.Module):
    """Answers what it is given, times a factor."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class Share(nn.Module):
    """Answers what it is given, where that is a probability, and the nearest one elsewhere."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(0.0, 1.0)


class Rounded(nn.Module):
    """Answers what it is given, a little further from 0.5; what made-up samples hold becomes a probability first."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.where(x < 4.0, x.clamp(0.0, 1.0), x)
        return 0.5 + (x - 0.5) * 1.000001


def vector(*values: float) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.array(values, dtype=np.float32)


# --- multi_label and tensor -----------------------------------------------------------------------------------------------


def test_labels_have_a_probability_each(tmp_path: Path) -> None:
    toml = 'task = "multi_label"\nlabels = "labels.txt"\n' + members("probabilities", 3, one=Share(), other=Share())
    toml += '[fusion]\nmethod = "weighted_mean"\n'
    with serving(tmp_path, toml, {"labels.txt": "ant\nbee\ncat\n"}) as client:
        answer = client.infer({"one": vector(0.5, 0.75, 0.0), "other": vector(0.25, 0.75, 0.5)}, top_k=2, explain=True)
        labels: Any = [(label.label, label.probability) for label in answer.prediction.labels]
        assert labels == [("bee", pytest.approx(0.75, abs=1e-6)), ("ant", pytest.approx(0.375, abs=1e-6))]
        assert answer.disagreement is not None
        attribution = answer.members["one"].attribution
        assert attribution is not None
        assert attribution.delta == pytest.approx((0.125 + 0.0 + 0.25) / 3, abs=1e-6)
        with pytest.raises(InvalidOption, match=r"top_k: found 4; allowed: 0 to 3"):
            client.infer({"one": vector(0.5, 0.5, 0.5)}, top_k=4)


def test_tensors_are_averaged_and_come_back_in_their_shape(tmp_path: Path) -> None:
    toml = 'task = "tensor"\n' + members("tensor", 2, one=Echo(), other=Echo(3.0))
    toml += '[fusion]\nmethod = "weighted_mean"\nweights = { one = 0.75, other = 0.25 }\n'
    with serving(tmp_path, toml) as client:
        tensor = client.infer({"one": vector(1.0, 2.0), "other": vector(1.0, 0.0)}).prediction.tensor
        assert tensor is not None
        assert tensor.shape == (2,)
        assert struct.unpack("<2f", tensor.data) == pytest.approx((1.5, 1.5))


def test_a_probability_that_is_none_is_called_that(tmp_path: Path) -> None:
    toml = 'task = "multi_label"\n' + members("probabilities", 2, one=Share(), other=Rounded())
    with serving(tmp_path, toml + '[fusion]\nmethod = "weighted_mean"\n') as client:
        assert not client.infer({"one": vector(1.0, 0.0), "other": vector(1.0, 0.0)}).degraded
        answer = client.infer({"one": vector(1.0, 0.0), "other": vector(5.0, 0.0)})
        error = answer.members["other"].error
        assert isinstance(error, NotFinite)
        assert error.text == "the member answered with NaN or an infinity, or with a probability that is none"


class Total(nn.Module):
    """Answers one number for a sample, as a regression does: the sum of what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sum(1)


def test_a_tensor_of_one_number_needs_no_dimension(tmp_path: Path) -> None:
    toml = 'task = "tensor"\n' + members("tensor", 2, one=Total(), other=Total()) + '[fusion]\nmethod = "weighted_mean"\n'
    with serving(tmp_path, toml) as client:
        rows = [{"one": vector(1.0, 2.0), "other": vector(4.0, 5.0)}, {"one": vector(8.0, 8.0)}]
        totals = [outcome.result for outcome in client.infer_batch(rows, explain=True)]
        for total, expected in zip(totals, (6.0, 16.0), strict=True):
            assert isinstance(total, Response)
            tensor = total.prediction.tensor
            assert tensor is not None
            assert (tensor.shape, struct.unpack("<f", tensor.data)) == ((), (expected,))


# --- similarity -----------------------------------------------------------------------------------------------------------


class Words(nn.Module):
    """Embeds a text by its token ids: how many are 0 and how many are 1."""

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return torch.stack([((ids == number) & (mask > 0)).sum(1).float() for number in (0, 1)], dim=-1)


WORDS = '{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,' \
    '"pre_tokenizer":{"type":"WhitespaceSplit"},"post_processor":null,"decoder":null,' \
    '"model":{"type":"WordLevel","vocab":{"a":0,"b":1},"unk_token":"a"}}'  # fmt: skip

SIMILARITY = """
    task = "similarity"
    {labels}
    [members.picture]
    model = "{picture}"
    [members.picture.input.picture]
    kind = "tensor"
    dtype = "float32"
    shape = [2]
    [members.picture.output]
    kind = "embedding"
    [members.words]
    model = "{words}"
    [members.words.input.texts]
    kind = "text"
    tokenizer = "words.json"
    max_tokens = 8
    mask = true
    max_samples = 4
    [members.words.output]
    kind = "embedding"
    [fusion]
    method = "cosine"
    scale = 10.0
    {texts}
    [batching]
    max_batch_size = 4
"""


@contextmanager
def comparing(folder: Path, with_own_texts: bool) -> Iterator[Client]:
    labels, texts = ('labels = "labels.txt"', 'texts = "texts.txt"') if with_own_texts else ("", "")
    toml = SIMILARITY.format(picture=register(Echo()), words=register(Words()), labels=labels, texts=texts)
    files = {"words.json": WORDS, "labels.txt": "first\nsecond\nboth\n", "texts.txt": "a a a\nb\na b\n"}
    with serving(folder, toml, files) as client:
        yield client


def softmax(*cosines: float) -> list[float]:
    values: list[float] = torch.tensor(cosines).mul(10.0).softmax(0).tolist()
    return values


def test_a_picture_is_compared_with_the_texts_of_the_request_in_its_order(tmp_path: Path) -> None:
    with comparing(tmp_path, with_own_texts=False) as client:
        answer = client.infer({"picture": vector(2.0, 0.0), "texts": ["b b", "a", "a b"]})
        assert [match.index for match in answer.prediction.matches] == [0, 1, 2]
        cosines = [match.cosine for match in answer.prediction.matches]
        assert cosines == pytest.approx([0.0, 1.0, 0.5**0.5], abs=1e-6)
        assert [match.probability for match in answer.prediction.matches] == pytest.approx(softmax(*cosines), abs=1e-5)


def test_rows_with_different_numbers_of_texts_share_flights_and_keep_their_own(tmp_path: Path) -> None:
    with comparing(tmp_path, with_own_texts=False) as client:
        rows: list[Any] = [{"picture": vector(1.0, 0.0), "texts": ["a", "b", "a b", "b"][: 1 + n % 4]} for n in range(40)]
        for outcome in client.infer_many(rows):
            cosines = [match.cosine for match in outcome.response.prediction.matches]
            assert cosines == pytest.approx([1.0, 0.0, 0.5**0.5, 0.0][: 1 + outcome.index % 4], abs=1e-6)


def test_a_request_without_texts_is_compared_with_the_ensembles_own_best_first(tmp_path: Path) -> None:
    with comparing(tmp_path, with_own_texts=True) as client:
        matches = client.infer({"picture": vector(0.0, 3.0)}, top_k=2).prediction.matches
        assert [(match.label, match.index) for match in matches] == [("second", 1), ("both", 2)]
        assert [match.cosine for match in matches] == pytest.approx([1.0, 0.5**0.5], abs=1e-6)
        (own,) = client.infer({"picture": vector(0.0, 3.0), "texts": ["a"]}).prediction.matches
        assert own.label == ""
        assert own.cosine == pytest.approx(0.0, abs=1e-6)


def test_a_likeness_needs_both_of_its_members(tmp_path: Path) -> None:
    with comparing(tmp_path, with_own_texts=False) as client:
        for inputs, missing in (({"picture": vector(1.0, 0.0)}, "texts"), ({"texts": ["a"]}, "picture")):
            with pytest.raises(MissingInput, match=missing):
                client.infer(inputs)


def test_texts_may_be_compared_by_a_member_that_another_one_feeds(tmp_path: Path) -> None:
    toml = SIMILARITY.format(picture=register(Echo()), words=register(Words()), labels="", texts="")
    encoder, found, rest = toml.partition("[fusion]")
    encoder = encoder.removesuffix("\n    ").removesuffix('kind = "embedding"') + 'kind = "features"'
    head = f"""
        [members.head]
        model = "{register(Echo(2.0))}"
        [members.head.input.features]
        kind = "output"
        member = "words"
        [members.head.output]
        kind = "embedding"
    """
    with serving(tmp_path, encoder + head + found + rest, {"words.json": WORDS}) as client:
        matches = client.infer({"picture": vector(2.0, 0.0), "texts": ["b b", "a", "a b"]}).prediction.matches
        assert [match.index for match in matches] == [0, 1, 2]
        assert [match.cosine for match in matches] == pytest.approx([0.0, 1.0, 0.5**0.5], abs=1e-6)


def test_texts_whose_member_fails_are_not_answered_with_the_ensembles_own(tmp_path: Path) -> None:
    words = Words()
    toml = SIMILARITY.format(
        picture=register(Echo()), words=register(words), labels='labels = "labels.txt"', texts='texts = "texts.txt"'
    )
    files = {"words.json": WORDS, "labels.txt": "first\nsecond\nboth\n", "texts.txt": "a a a\nb\na b\n"}
    with serving(tmp_path, toml, files) as client:
        words.forward = lambda *arguments: torch.full((len(arguments[0]), 2), torch.nan)  # type: ignore[method-assign]
        with pytest.raises(NotFinite) as failure:
            client.infer({"picture": vector(0.0, 3.0), "texts": ["b", "a"]})
        assert failure.value.member == "words"
        assert client.infer({"picture": vector(0.0, 3.0)}).prediction.matches[0].label == "second"


def test_more_texts_than_a_row_may_bring_are_refused(tmp_path: Path) -> None:
    with comparing(tmp_path, with_own_texts=False) as client, pytest.raises(TwinferError, match=r"5.*4"):
        client.infer({"picture": vector(1.0, 0.0), "texts": ["a"] * 5})


# --- detection ------------------------------------------------------------------------------------------------------------


class Finder(nn.Module):
    """Finds two objects in every picture: the upper left quarter, certain of it, and the lower right one, less so."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        boxes = torch.tensor([[0.0, 0.0, 0.5, 0.5 + self.shift], [0.5, 0.5, 1.0, 1.0]], device=pixels.device)
        scores = torch.tensor([[0.75, 0.125], [0.125, 0.5]], device=pixels.device)
        return boxes.expand(len(pixels), -1, -1), scores.expand(len(pixels), -1, -1)


class Brightness(nn.Module):
    """Classifies a crop by whether it is bright: logits [-x, x] of its mean brightness less a half, times 8."""

    def forward(self, crops: Tensor) -> Tensor:
        x = (crops.mean((1, 2, 3)) - 0.5) * 8
        return torch.stack([-x, x], dim=-1)


DETECTOR = """
    [members.{name}]
    model = "{model}"
    [members.{name}.input.image]
    kind = "image"
    size = [8, 8]
    color = "gray"
    [members.{name}.output]
    kind = "detections"
"""


def picture() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Dark, with a bright lower right quarter."""
    pixels = np.zeros((8, 8, 1), dtype=np.uint8)
    pixels[4:, 4:] = 255
    return pixels


def name_crops(namer: nn.Module, max_crops: int) -> str:
    """An ensemble in which `namer` says what is in the finder's boxes."""
    return f"""
        task = "detection"
        labels = "labels.txt"
        {DETECTOR.format(name="finder", model=register(Finder(0.0)))}
        [members.namer]
        model = "{register(namer)}"
        [members.namer.input.crops]
        kind = "crops"
        member = "finder"
        size = [4, 4]
        max_crops = {max_crops}
        [fusion]
        method = "classify_crops"
    """


def boxes_of(answer: Response) -> Any:
    return [(box.label, [box.x_min, box.y_min, box.x_max, box.y_max], box.score) for box in answer.prediction.boxes]


def test_boxes_that_two_detectors_see_alike_become_one(tmp_path: Path) -> None:
    toml = 'task = "detection"\nlabels = "labels.txt"\n'
    toml += "".join(DETECTOR.format(name=name, model=register(Finder(shift))) for name, shift in (("one", 0.0), ("other", 0.1)))
    toml += '[fusion]\nmethod = "weighted_boxes"\niou = 0.5\n'
    with serving(tmp_path, toml, {"labels.txt": "dark\nbright\n"}) as client:
        answer = client.infer({"image": picture()}, explain=True)
        assert boxes_of(answer) == [
            ("dark", pytest.approx([0.0, 0.0, 0.5, 0.55], abs=1e-6), pytest.approx(0.75, abs=1e-6)),
            ("bright", pytest.approx([0.5, 0.5, 1.0, 1.0], abs=1e-6), pytest.approx(0.5, abs=1e-6)),
        ]
        attribution = answer.members["one"].attribution
        assert attribution is not None
        assert attribution.delta == pytest.approx(0.0, abs=1e-6)  # without it the same two objects are found
        own = answer.members["other"].prediction
        assert own is not None
        assert own.boxes[0].y_max == pytest.approx(0.6, abs=1e-6)


def test_crops_of_what_a_detector_finds_are_classified_on_the_device(tmp_path: Path) -> None:
    toml = name_crops(Brightness(), max_crops=3)
    with serving(tmp_path, toml, {"labels.txt": "dark\nbright\n"}) as client:
        expected = torch.tensor([-4.0, 4.0]).softmax(0)[1].item()
        for outcome in client.infer_many([{"image": picture()}] * 20):
            assert boxes_of(outcome.response) == [
                ("dark", pytest.approx([0.0, 0.0, 0.5, 0.5], abs=1e-6), pytest.approx(0.75 * expected, abs=1e-5)),
                ("bright", pytest.approx([0.5, 0.5, 1.0, 1.0], abs=1e-6), pytest.approx(0.5 * expected, abs=1e-5)),
            ]
        assert [member.upstream for member in client.describe().members] == [[], ["finder"]]


class Shades(nn.Module):
    """Classifies a crop into one of six shades of grey: logits that are as far apart as its mean brightness."""

    def forward(self, crops: Tensor) -> Tensor:
        return crops.mean((1, 2, 3)).unsqueeze(-1) * torch.arange(6.0, device=crops.device)


def test_a_classifier_of_crops_says_probabilities_even_of_as_many_classes_as_a_box_has_numbers(tmp_path: Path) -> None:
    toml = name_crops(Shades(), max_crops=2)
    with serving(tmp_path, toml, {"labels.txt": "black\ndark\ndim\nlight\nbright\nwhite\n"}) as client:
        members = client.infer({"image": picture()}, member_predictions=True).members
        finder, namer = members["finder"].prediction, members["namer"].prediction
        assert finder is not None
        assert namer is not None
        assert [box.label for box in finder.boxes] == ["black", "dark"]
        assert namer.boxes == ()
        assert namer.tensor is not None
        beliefs = np.frombuffer(namer.tensor.data, "<f4").reshape(namer.tensor.shape)
        assert beliefs[0] == pytest.approx([1 / 6] * 6)
        assert beliefs[1] == pytest.approx(torch.arange(6.0).softmax(0).numpy(), abs=1e-5)


# --- members that only feed others ----------------------------------------------------------------------------------------


def test_an_encoder_that_only_feeds_heads_has_no_vote(tmp_path: Path) -> None:
    toml = 'task = "classification"\n' + members("features", 2, encoder=Echo(2.0))
    for name, factor in (("one", 1.0), ("other", 3.0)):
        toml += f"""
            [members.{name}]
            model = "{register(Echo(factor))}"
            [members.{name}.input.features]
            kind = "output"
            member = "encoder"
        """
    toml += '[fusion]\nmethod = "log_opinion_pool"\n'
    with serving(tmp_path, toml) as client:
        answer = client.infer({"encoder": vector(0.5, 0.0)}, member_predictions=True)
        assert {name: (str(member.state), member.weight) for name, member in answer.members.items()} == {
            "encoder": ("OK", 0.0), "one": ("OK", 0.5), "other": ("OK", 0.5),
        }  # fmt: skip
        expected = torch.tensor([2.0, 0.0]).softmax(0)[0].item()  # the mean of the logits 1 and 3
        assert answer.prediction.best.probability == pytest.approx(expected, abs=1e-6)
        assert answer.members["encoder"].prediction is None


@pytest.mark.parametrize(
    ("labels", "message"),
    [("first\nsecond\n", "2 labels; allowed: one for each of the 3 texts"), ("a\nb\nc\nd\n", "4 labels")],
)
def test_labels_must_be_as_many_as_texts(tmp_path: Path, labels: str, message: str) -> None:
    toml = SIMILARITY.format(
        picture=register(Echo()), words=register(Words()), labels='labels = "labels.txt"', texts='texts = "texts.txt"'
    )
    files = {"words.json": WORDS, "labels.txt": labels, "texts.txt": "a\nb\na b\n"}
    with pytest.raises(InvalidEnsemble, match=message), serving(tmp_path, toml, files):
        raise AssertionError("it started")
