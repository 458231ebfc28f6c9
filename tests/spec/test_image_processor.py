"""Image processors of directories: what a file says is followed as the library takes it, or refused by file and key."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.image_processing_backends import PilBackend

from tests.image_processors import CLIP, HALF, IMAGENET, find_error, new, old, read, soften, square, write
from tests.pictures import make_kind
from tests.servers import ROOT
from twinfer_server.errors import InvalidEnsemble
from twinfer_server.reference.images import compare_images
from twinfer_server.spec import image_processor, image_processor_keys

VIT = new("ViT", size=square(24), resample=3, **HALF)
CROPPING = new("CLIP", size={"shortest_edge": 26}, crop_size=square(24), do_center_crop=True, resample=3, **CLIP)
SHAPES = [(50, 37), (33, 61), (24, 24), (1, 1)]
NAN, ENDLESS = float("nan"), float("inf")

SERVED: dict[str, tuple[str, dict[str, Any]]] = {
    "a size in one number": ("vit", VIT | {"size": 24}),
    "a size as a list": ("vit", VIT | {"size": [24, 30]}),
    "no size": ("vit", {key: VIT[key] for key in VIT if key != "size"}),
    "nulls, which leave steps out": (
        "vit",
        dict.fromkeys(VIT) | {"image_processor_type": "ViTImageProcessor", "do_resize": True, "size": square(24), "resample": 3},
    ),
    "only a class": ("siglip", {"image_processor_type": "SiglipImageProcessor"}),
    "no class": ("vit", {"size": 24}),
    "one mean for all": ("vit", VIT | {"image_mean": 0.4, "image_std": 0.3}),
    "no mean": ("vit", {key: value for key, value in VIT.items() if not key.startswith("image_")}),
    "no share of PoolFormer": ("poolformer", new("PoolFormer", size=square(24), crop_size=square(20), crop_pct=None, **HALF)),
    "another factor": ("vit", VIT | {"rescale_factor": 1 / 127.5, "image_mean": 1, "image_std": 1}),
    "no scaling": ("vit", VIT | {"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [60, 61, 62]}),
    "neither scaling nor normalising": ("vit", VIT | {"do_rescale": False, "do_normalize": False}),
    "padding, of which there is nothing": ("vit", VIT | {"do_pad": True}),
    "ConvNeXt's crop": ("convnext", old("ConvNext", size=24, crop_pct=0.875, resample=3, **IMAGENET)),
    "ConvNeXt's default share": ("convnext", old("ConvNext", size=24, resample=3, **IMAGENET)),
    "LeViT's larger edge": ("levit", old("Levit", size=28, crop_size=24, resample=3, **IMAGENET)),
    "LeViT of height and width": ("levit", new("Levit", size={"height": 30, "width": 27}, crop_size=square(24), **IMAGENET)),
    "PoolFormer of another height": (
        "poolformer",
        new("PoolFormer", size={"height": 20, "width": 26}, crop_size=square(19), **IMAGENET),
    ),
    "PoolFormer's square, whose shorter edge counts": (
        "poolformer",
        new("PoolFormer", size=square(24), crop_size=square(24), **IMAGENET),
    ),
    "EfficientNet's second division": ("efficientnet", new("EfficientNet", size=square(24), include_top=True, **IMAGENET)),
    "EfficientNet's division alone": ("efficientnet", new("EfficientNet", size=square(24), **IMAGENET) | {"do_normalize": False}),
    "EfficientNet's offset": (
        "efficientnet",
        new("EfficientNet", size=square(24), include_top=False, rescale_offset=True, **HALF) | {"rescale_factor": 1 / 127.5},
    ),
    "MobileViT, which never normalises": (
        "mobilevit",
        new("MobileViT", size={"shortest_edge": 28}, crop_size=square(24), resample=3, do_normalize=True, **HALF),
    ),
    "a crop of more than there is": (
        "mobilevit",
        new("MobileViT", size={"shortest_edge": 20}, crop_size=square(25), resample=3),
    ),
    "SegFormer, which never crops": (
        "segformer",
        new("Segformer", size=square(24), do_center_crop=True, crop_size=square(9), **HALF),
    ),
    "DETR, made square": ("detr", new("Detr", size=square(24), do_pad=True, format="coco_detection", resample=3, **IMAGENET)),
    "DPT of multiples": ("dpt", new("DPT", size=square(28), ensure_multiple_of=14, keep_aspect_ratio=False, **HALF)),
}


@pytest.mark.parametrize("name", SERVED)
def test_a_file_means_what_the_library_takes_it_for(tmp_path: Path, name: str) -> None:
    model, facts = SERVED[name]
    directory = write(tmp_path, model, facts)
    kind = read(tmp_path)
    errors = [find_error(kind, directory, soften(*shape)) for shape in SHAPES]
    assert max(errors) <= (1.001 if kind.spec.resize == "bilinear" else 0.002)


def test_a_grey_model_sees_grey(tmp_path: Path) -> None:
    directory = write(tmp_path, "vit", VIT | {"image_mean": [0.4], "image_std": 0.3}, num_channels=1)
    assert find_error(read(tmp_path), directory, soften(50, 37, "L")) <= 0.002
    assert compare_images("key", read(tmp_path), directory).startswith("key: 7 pictures, largest difference ")


def test_the_newer_table_of_the_processors_file_goes_before_the_older_file(tmp_path: Path) -> None:
    write(tmp_path, "clip", VIT)
    directory = write(tmp_path, "clip", CROPPING, nested=True)
    assert find_error(read(tmp_path), directory, soften(50, 37)) <= 0.002
    (directory / "processor_config.json").write_text(json.dumps({"image_processor": CROPPING | {"resample": 9}}))
    with pytest.raises(InvalidEnsemble, match=r"processor_config\.json: image_processor: resample: found '9'; allowed: 0 to 5"):
        read(tmp_path)


MALFORMED: dict[str, list[Any]] = {
    "do_resize": ["false", 0, [], {}, None],
    "do_rescale": ["true", 1.0],
    "do_normalize": ["no"],
    "do_center_crop": ["false"],
    "size": [
        None,
        "224",
        -1,
        0,
        True,
        24.0,
        10**9,
        [24],
        [24, "24"],
        {},
        {"height": 24},
        {"height": 24, "width": 0},
        {"side": 24},
        {"height": "a"},
    ],
    "crop_size": [-24, "24", {"height": 24, "width": -24}],
    "pad_size": [{"height": 30, "width": 30}],
    "resample": [None, "bicubic", 6, -1, 2.0, True, [3]],
    "rescale_factor": [None, 0, -1, "1/255", NAN, ENDLESS, True],
    "image_mean": [None, "0.5", NAN, [0.5], [0.5] * 4, [0.5, None, 0.5], {}, [[0.5]], ENDLESS, 1e300],
    "image_std": [0, [0.5, 0.0, 0.5], -0.5, NAN, [0.5, 0.5], "0.5"],
    "image_processor_type": [3, ["ViTImageProcessor"], "PerceiverImageProcessor", "NoImageProcessor", ""],
    "do_sharpen": [True, None],
    "resize": [True],
    "_preprocess": ["x"],
    "__class__": ["x"],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in MALFORMED.items() for value in values], ids=str)
def test_a_value_that_means_nothing_is_refused_by_file_and_key(tmp_path: Path, key: str, value: Any) -> None:
    write(tmp_path, "vit", VIT | {"do_pad": True} | {key: value})
    named = "class|Processor" if key == "image_processor_type" else key
    with pytest.raises(
        InvalidEnsemble, match=rf"m: input\.image: preprocessor_config\.json: .*({named}).*found .*; allowed: |found .*{named}"
    ):
        read(tmp_path)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "3", "null", '{"size": ' + "[" * 100_000, "\x00", '{"size": 1e999}'], ids=range(8)
)
def test_a_file_that_is_no_table_is_refused_by_its_name(tmp_path: Path, content: str) -> None:
    write(tmp_path, "vit", content)
    with pytest.raises(InvalidEnsemble, match=r"m: input\.image: .*preprocessor_config\.json"):
        read(tmp_path)


@pytest.mark.parametrize("channels", [0, 4, "3", True], ids=str)
def test_a_model_of_other_channels_is_refused(tmp_path: Path, channels: Any) -> None:
    write(tmp_path, "vit", VIT, num_channels=channels)
    with pytest.raises(InvalidEnsemble, match=r"num_channels of config\.json: found .*; allowed: 3, or 1 for grey"):
        read(tmp_path)


REMEDIES: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "a kept shape, stretched": (
        "vit",
        VIT | {"size": {"shortest_edge": 24}},
        "size: .*; allowed: height and width, to which every picture is",
        {"size": square(24)},
    ),
    "a kept shape, cropped": (
        "siglip",
        new("Siglip", size=24, **HALF),
        "size: .*or do_center_crop and a crop_size beside it",
        {"do_center_crop": True, "crop_size": square(24)},
    ),
    "DETR's kept shape": (
        "detr",
        new("Detr", size={"shortest_edge": 24, "longest_edge": 40}, resample=3, **IMAGENET),
        "size: .*allowed: height and width",
        {"size": {"height": 24, "width": 32}},
    ),
    "DPT's kept shape": (
        "dpt",
        new("DPT", size=square(28), keep_aspect_ratio=True, ensure_multiple_of=14, **HALF),
        "keep_aspect_ratio: found true; allowed: false",
        {"keep_aspect_ratio": False},
    ),
    "DPT's multiples": (
        "dpt",
        new("DPT", size=square(30), ensure_multiple_of=14, **HALF),
        "size: .*; allowed: multiples of 14",
        {"size": square(42)},
    ),
    "no resizing": ("vit", VIT | {"do_resize": False}, "do_resize: found false; allowed: true", {"do_resize": True}),
    "ConvNeXt's second crop": (
        "convnext",
        new("ConvNext", size={"shortest_edge": 24}, do_center_crop=True, crop_size=square(20), **IMAGENET),
        "crop_size: .*; allowed: height and width of 24, or do_center_crop = false",
        {"do_center_crop": False},
    ),
    "another padding": ("vit", VIT | {"do_pad": True, "pad_size": square(30)}, "pad_size: .*allowed: none", {"pad_size": None}),
}


@pytest.mark.parametrize("name", REMEDIES)
def test_what_a_refusal_allows_is_then_served_to_the_librarys_pixels(tmp_path: Path, name: str) -> None:
    model, facts, message, remedy = REMEDIES[name]
    write(tmp_path, model, facts)
    with pytest.raises(InvalidEnsemble, match=rf"preprocessor_config\.json: {message}"):
        read(tmp_path)
    directory = write(tmp_path, model, facts | remedy)
    assert max(find_error(read(tmp_path), directory, soften(*shape)) for shape in SHAPES) <= 0.002


def test_a_size_in_the_ensembles_file_does_not_let_unknown_steps_pass(tmp_path: Path) -> None:
    write(tmp_path, "perceiver", new("Perceiver", **HALF), "size = [24, 24]")
    message = (
        "found PerceiverImageProcessor, which has steps of its own; allowed: .*size, color, fit, resize, scaled_decoding, mean"
    )
    with pytest.raises(InvalidEnsemble, match=message):
        read(tmp_path)
    all_of_it = 'size = [24, 24]\ncolor = "rgb"\nfit = "stretch"\nresize = "bicubic"\nscaled_decoding = false\nmean = []\nstd = []'
    directory = write(tmp_path, "perceiver", new("Perceiver", **HALF), all_of_it)
    assert compare_images("key", read(tmp_path), directory).startswith(
        "key: not compared: preprocessor_config.json: found PerceiverImage"
    )


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("size = [24, 24]", ([24, 24], "crop", 26)),
        ("size = [30, 30]", r"size: found \[30, 30\]; allowed: \[24, 24\], to which the image processor crops; or a fit beside it"),
        ('size = [30, 30]\nfit = "stretch"', ([30, 30], "stretch", None)),
        ('fit = "pad"', ([24, 24], "pad", None)),
        ("resize_to = 40", ([24, 24], "crop", 40)),
    ],
    ids=str,
)
def test_how_a_picture_fits_is_said_by_one_of_the_two(tmp_path: Path, keys: str, expected: Any) -> None:
    directory = write(tmp_path, "clip", CROPPING, keys)
    if isinstance(expected, str):
        with pytest.raises(InvalidEnsemble, match=expected):
            read(tmp_path)
        return
    spec = read(tmp_path).spec
    assert (spec.size, spec.fit, spec.resize_to) == expected
    compared = compare_images("key", read(tmp_path), directory)
    assert compared.startswith("key: 8 pictures" if keys == "size = [24, 24]" else "key: not compared: the ensemble's file has ")


@pytest.mark.parametrize("change", [{"resample": 2}, {"image_mean": [0.5, 0.5, 0.502]}, {"do_rescale": False}], ids=str)
def test_a_difference_from_the_library_is_not_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    directory = write(tmp_path, "vit", VIT)
    kind = read(tmp_path)
    changed = transformers.AutoImageProcessor.from_pretrained(write(tmp_path, "vit", VIT | change), backend="pil")
    monkeypatch.setattr("twinfer_server.reference.images.load_image_processor", lambda _: changed)
    write(tmp_path, "vit", VIT)
    message = (
        r"^key: an upright picture: found [-\d.]+ in channel \d, row \d+, column \d+ of 24 x 24; allowed: [-\d.]+, as ViTImage"
    )
    with pytest.raises(InvalidEnsemble, match=message):
        compare_images("key", kind, directory)


def test_a_picture_that_the_library_cannot_take_is_named_as_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = write(tmp_path, "vit", VIT)
    processor = transformers.AutoImageProcessor.from_pretrained(directory, backend="pil")

    def refuse_small(images: Any, return_tensors: str) -> Any:
        if images.size == (1, 1):
            raise ValueError("too small")
        return processor(images=images, return_tensors=return_tensors)

    refuse_small.do_convert_rgb = False  # type: ignore[attr-defined]
    monkeypatch.setattr("twinfer_server.reference.images.load_image_processor", lambda _: refuse_small)
    left_out = r"^key: 6 pictures, largest difference .*; left out: a picture of one pixel \(function: 'too small'\)$"
    assert re.match(left_out, compare_images("key", read(tmp_path), directory))


def test_a_bgr_member_gets_blue_first() -> None:
    kind = make_kind(size=[1, 1], color="bgr", mean=[0.5, 0, 0], std=[1, 1, 2])
    [argument] = kind.arguments([torch.tensor([[[[255, 51, 102]]]], dtype=torch.uint8)])
    torch.testing.assert_close(argument.flatten(), torch.tensor([0.4 - 0.5, 0.2, 1.0 / 2]))


def test_the_docs_list_every_key_and_class() -> None:
    section = (ROOT / "docs/hugging-face.md").read_text().split("\n## Images\n")[1].split("\n## ")[0]

    def listed(heading: str) -> set[str]:
        return set(re.findall(r"`(\w+)`", section.split(f"**{heading}**")[1].split("\n\n")[0].split("Of `config")[0]))

    assert listed("Keys that are read") == set(image_processor_keys.READ)
    assert listed("Keys that change nothing") == set(image_processor_keys.IRRELEVANT)
    assert listed("Classes with steps of their own") == {name.removesuffix("ImageProcessor") for name in image_processor.OWN_STEPS}
    plain = {f"{name}ImageProcessorPil" for name in listed("Classes with the library's plain steps")}
    for name in sorted(plain):
        kind = getattr(transformers, name)
        assert all(getattr(kind, step) is getattr(PilBackend, step) for step in image_processor.STEPS), name
    assert len(plain) >= 10
