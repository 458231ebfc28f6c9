"""Image processors of published checkpoints: each gives the library's own pixels, or is refused by the name of its key or class."""

import math
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.image_processors import CLIP, HALF, IMAGENET, ask_library, find_error, new, old, read, soften, square, write
from twinfer_server.errors import InvalidEnsemble
from twinfer_server.reference.images import compare_images

CROP = {"do_center_crop": True}
EDGES = {"shortest_edge": 800, "longest_edge": 1333}
SERVED: dict[str, tuple[str, dict[str, Any]]] = {
    "google/vit-base-patch16-224": ("vit", {"do_normalize": True, "do_resize": True, "size": 224, **HALF}),
    "google/vit-base-patch16-224-in21k": ("vit", new("ViT", resample=2, size=square(224), **HALF)),
    "google/vit-base-patch32-384": ("vit", new("ViT", resample=2, size=square(384), **HALF)),
    "saved by ViTImageProcessorFast": (
        "vit",
        new("ViT", size=square(224), **HALF) | {"image_processor_type": "ViTImageProcessorFast"},
    ),
    "facebook/vit-mae-base": ("vit_mae", old("ViT", size=224, **IMAGENET)),
    "facebook/dino-vits16": ("vit", old("ViT", size=224, resample=3, **IMAGENET)),
    "facebook/deit-base-distilled-patch16-224": ("deit", old("DeiT", size=256, crop_size=224, resample=3, **CROP, **IMAGENET)),
    "microsoft/beit-base-patch16-224": (
        "beit",
        old("Beit", size=224, crop_size=224, do_center_crop=False, resample=2, reduce_labels=False, **HALF),
    ),
    "microsoft/beit-large-patch16-512": (
        "beit",
        new("Beit", size=square(512), crop_size=square(512), do_center_crop=False, do_reduce_labels=False, resample=3, **HALF),
    ),
    "microsoft/swin-tiny-patch4-window7-224": ("swin", old("ViT", size=224, resample=3, **IMAGENET)),
    "microsoft/swinv2-tiny-patch4-window8-256": ("swinv2", old("ViT", size=256, resample=3, **IMAGENET)),
    "microsoft/resnet-50": ("resnet", old("ConvNext", size=224, crop_pct=0.875, resample=3, **IMAGENET)),
    "facebook/convnext-tiny-224": ("convnext", old("ConvNext", size=224, crop_pct=0.875, resample=3, **IMAGENET)),
    "facebook/convnext-base-384": ("convnext", old("ConvNext", size=384, crop_pct=0.875, resample=3, **IMAGENET)),
    "facebook/convnextv2-tiny-22k-384": (
        "convnextv2",
        new("ConvNext", size={"shortest_edge": 384}, crop_pct=0.875, resample=3, **IMAGENET),
    ),
    "facebook/regnet-y-040": ("regnet", old("ConvNext", size=224, crop_pct=0.875, resample=3, **IMAGENET)),
    "facebook/levit-128S": ("levit", old("Levit", size=224, resample=3, **CROP, **IMAGENET)),
    "facebook/levit-384, saved anew": (
        "levit",
        new("Levit", size={"shortest_edge": 224}, crop_size=square(224), resample=3, **CROP, **IMAGENET),
    ),
    "sail/poolformer_s12": (
        "poolformer",
        old("PoolFormer", size=224, crop_pct=0.9, do_resize_and_center_crop=True, resample=3, **IMAGENET),
    ),
    "sail/poolformer_m48": (
        "poolformer",
        old("PoolFormer", size=224, crop_pct=0.95, do_resize_and_center_crop=True, resample=3, **IMAGENET),
    ),
    "google/efficientnet-b0": (
        "efficientnet",
        new(
            "EfficientNet",
            size=square(224),
            crop_size=square(289),
            do_center_crop=False,
            include_top=True,
            resample=0,
            rescale_offset=False,
            image_mean=IMAGENET["image_mean"],
            image_std=[0.47853944, 0.4732864, 0.47434163],
        ),
    ),
    "google/efficientnet-b7": (
        "efficientnet",
        new(
            "EfficientNet",
            size=square(600),
            crop_size=square(289),
            do_center_crop=False,
            include_top=True,
            resample=0,
            rescale_offset=False,
            image_mean=IMAGENET["image_mean"],
            image_std=[0.47853944, 0.4732864, 0.47434163],
        ),
    ),
    "kakaobrain/align-base": (
        "align",
        new(
            "EfficientNet",
            size=square(289),
            crop_size=square(289),
            do_center_crop=True,
            do_normalize=False,
            include_top=False,
            resample=2,
            rescale_factor=1 / 127.5,
            rescale_offset=True,
            **HALF,
        ),
    ),
    "google/mobilenet_v1_1.0_224": (
        "mobilenet_v1",
        new("MobileNetV1", size={"shortest_edge": 256}, crop_size=square(224), resample=2, **CROP, **HALF),
    ),
    "google/mobilenet_v2_1.0_224": (
        "mobilenet_v2",
        new("MobileNetV2", size={"shortest_edge": 256}, crop_size=square(224), resample=2, **CROP, **HALF),
    ),
    "apple/mobilevit-small": (
        "mobilevit",
        {
            "crop_size": 256,
            "do_center_crop": True,
            "do_flip_channel_order": True,
            "do_resize": True,
            "resample": 2,
            "size": 288,
            "feature_extractor_type": "MobileViTFeatureExtractor",
        },
    ),
    "apple/mobilevitv2-1.0-imagenet1k-256": (
        "mobilevitv2",
        {
            "image_processor_type": "MobileViTImageProcessor",
            "do_resize": True,
            "size": {"shortest_edge": 288},
            "do_rescale": True,
            "crop_size": square(256),
            "do_center_crop": True,
            "do_flip_channel_order": True,
            "rescale_factor": 1 / 255,
            "resample": 2,
        },
    ),
    "MobileViT without a flip": (
        "mobilevit",
        {
            "image_processor_type": "MobileViTImageProcessor",
            "size": {"shortest_edge": 40},
            "crop_size": square(49),
            "do_flip_channel_order": False,
        },
    ),
    "nvidia/mit-b0": ("segformer", old("Segformer", size=512, resample=2, reduce_labels=False, **IMAGENET)),
    "nvidia/mit-b5, saved anew": ("segformer", new("Segformer", size=square(512), do_reduce_labels=False, resample=2, **IMAGENET)),
    "openai/clip-vit-base-patch32": ("clip", old("CLIP", size=224, crop_size=224, resample=3, **CROP, **CLIP)),
    "openai/clip-vit-large-patch14-336": ("clip", old("CLIP", size=336, crop_size=336, resample=3, **CROP, **CLIP)),
    "laion/CLIP-ViT-B-32-laion2B-s34B-b79K": (
        "clip",
        new("CLIP", size={"shortest_edge": 224}, crop_size=square(224), do_convert_rgb=True, resample=3, **CROP, **CLIP),
    ),
    "OFA-Sys/chinese-clip-vit-base-patch16": ("chinese_clip", new("ChineseCLIP", size=square(224), resample=3, **CLIP, **CROP)),
    "google/siglip-base-patch16-224": ("siglip", new("Siglip", size=square(224), resample=3, **HALF)),
    "Salesforce/blip-image-captioning-base": ("blip", new("Blip", size=square(384), do_convert_rgb=True, resample=3, **CLIP)),
    "facebook/dinov2-base": (
        "dinov2",
        new("Bit", size={"shortest_edge": 256}, crop_size=square(224), do_convert_rgb=True, resample=3, **CROP, **IMAGENET),
    ),
    "google/bit-50": (
        "bit",
        new("Bit", size={"shortest_edge": 448}, crop_size=square(448), do_convert_rgb=True, resample=3, **CROP, **HALF),
    ),
    "Zetatech/pvt-tiny-224": ("pvt", new("Pvt", size=square(224), resample=2, **IMAGENET)),
    "PekingU/rtdetr_r50vd": (
        "rt_detr",
        new(
            "RTDetr",
            size=square(640),
            do_normalize=False,
            do_pad=False,
            do_convert_annotations=True,
            format="coco_detection",
            resample=2,
            return_segmentation_masks=None,
            **IMAGENET,
        ),
    ),
    "facebook/detr-resnet-50, made square": (
        "detr",
        new("Detr", size=square(800), do_pad=True, format="coco_detection", resample=2, **IMAGENET),
    ),
    "hustvl/yolos-tiny, made square": ("yolos", new("Yolos", size=square(512), do_pad=True, format="coco_detection", **IMAGENET)),
    "SenseTime/deformable-detr, made square": ("deformable_detr", new("DeformableDetr", size=square(600), do_pad=True, **IMAGENET)),
    "microsoft/conditional-detr-resnet-50, made square": (
        "conditional_detr",
        new("ConditionalDetr", size={"height": 480, "width": 640}, do_pad=True, **IMAGENET),
    ),
    "Intel/dpt-large": ("dpt", old("DPT", size=384, ensure_multiple_of=1, keep_aspect_ratio=False, resample=3, **HALF)),
    "Intel/dpt-beit-base-384": (
        "dpt",
        new("DPT", size=square(384), ensure_multiple_of=32, keep_aspect_ratio=False, do_pad=False, resample=3, **HALF),
    ),
    "facebook/data2vec-vision-base": (
        "data2vec-vision",
        old("Beit", size=224, crop_size=224, do_center_crop=False, resample=3, **HALF),
    ),
    "facebook/chameleon-7b": (
        "chameleon",
        new(
            "Chameleon",
            size={"shortest_edge": 512},
            crop_size=square(512),
            do_convert_rgb=True,
            resample=1,
            rescale_factor=0.0078,
            image_mean=[1.0] * 3,
            image_std=[1.0] * 3,
            **CROP,
        ),
    ),
    "google/owlvit-base-patch32": ("owlvit", new("OwlViT", size=square(768), crop_size=square(768), do_center_crop=False, **CLIP)),
}
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "facebook/detr-resnet-50": ("detr", new("Detr", size=EDGES, do_pad=True, format="coco_detection", **IMAGENET), "size"),
    "facebook/detr-resnet-101, an old file": ("detr", old("Detr", size=800, max_size=1333, **IMAGENET), "size"),
    "hustvl/yolos-tiny": ("yolos", old("Yolos", size=512, max_size=864, format="coco_detection", **IMAGENET), "size"),
    "Intel/dpt-hybrid-midas": (
        "dpt",
        old("DPT", size=384, ensure_multiple_of=32, keep_aspect_ratio=True, **HALF),
        "keep_aspect_ratio",
    ),
    "deepmind/vision-perceiver-conv": (
        "perceiver",
        new("Perceiver", size=square(224), crop_size=square(256), resample=3, **CROP, **IMAGENET),
        "PerceiverImageProcessor",
    ),
    "vinvino02/glpn-kitti": (
        "glpn",
        {"image_processor_type": "GLPNImageProcessor", "do_resize": True, "size_divisor": 32, "resample": 2},
        "GLPNImageProcessor",
    ),
    "dandelin/vilt-b32-finetuned-vqa": (
        "vilt",
        new("Vilt", size={"shortest_edge": 384}, size_divisor=32, do_pad=True, **HALF),
        "ViltImageProcessor",
    ),
    "openai/imagegpt-small": (
        "imagegpt",
        {"image_processor_type": "ImageGPTImageProcessor", "size": square(32)},
        "ImageGPTImageProcessor",
    ),
    "caidas/swin2SR-classical-sr-x2-64": (
        "swin2sr",
        {"image_processor_type": "Swin2SRImageProcessor", "do_pad": True, "pad_size": 8},
        "Swin2SRImageProcessor",
    ),
    "naver-clova-ix/donut-base": (
        "donut",
        new("Donut", size=[1920, 2560], do_align_long_axis=False, do_thumbnail=True, do_pad=True, **HALF),
        "DonutImageProcessor",
    ),
    "microsoft/layoutlmv3-base": (
        "layoutlmv3",
        new("LayoutLMv3", size=square(224), apply_ocr=True, **HALF),
        "LayoutLMv3ImageProcessor",
    ),
    "MCG-NJU/videomae-base": ("videomae", old("VideoMAE", size=224, **IMAGENET), "VideoMAEImageProcessor"),
    "google/siglip2-base-patch16-naflex": (
        "siglip2",
        new("Siglip2", max_num_patches=256, patch_size=16, **HALF),
        "Siglip2ImageProcessor",
    ),
    "google/owlv2-base-patch16": ("owlv2", new("Owlv2", size=square(960), do_pad=True, **CLIP), "Owlv2ImageProcessor"),
    "facebook/sam-vit-base": (
        "sam",
        new("Sam", size={"longest_edge": 1024}, pad_size=square(1024), **IMAGENET),
        "SamImageProcessor",
    ),
    "llava-hf/llava-1.5-7b-hf": (
        "llava",
        new("Llava", size={"shortest_edge": 336}, crop_size=square(336), do_pad=True, **CLIP),
        "LlavaImageProcessor",
    ),
    "Qwen/Qwen2-VL-2B-Instruct": (
        "qwen2_vl",
        new("Qwen2VL", min_pixels=3136, max_pixels=12845056, patch_size=14, merge_size=2, **CLIP),
        "Qwen2VLImageProcessor",
    ),
    "facebook/mask2former-swin-tiny": (
        "mask2former",
        new("Mask2Former", size=square(384), **IMAGENET),
        "Mask2FormerImageProcessor",
    ),
    "snap-research/efficientformer-l1-300": (
        "efficientformer",
        new("EfficientFormer", size=square(224), resample=3, **IMAGENET),
        "EfficientFormerImageProcessor",
    ),
    "facebook/dinov3-vits16": ("dinov3_vit", new("DINOv3ViT", size=square(224), **IMAGENET), "DINOv3ViTImageProcessor"),
    "google/siglip, sizes in one number": ("siglip", new("Siglip", size=224, **HALF), "size"),
}


@pytest.mark.parametrize("name", SERVED)
def test_a_published_image_processor_is_served_to_the_pixel(tmp_path: Path, name: str) -> None:
    model, facts = SERVED[name]
    directory = write(tmp_path, model, facts)
    kind = read(tmp_path)
    own = kind.spec.size[1], kind.spec.size[0]
    for seed, (width, height) in enumerate([(500, 375), (333, 500), (61, 47), (1, 1), (40, 190), own]):
        error = find_error(kind, directory, soften(width, height, seed=seed))
        assert error <= (1.001 if kind.spec.resize == "bilinear" else 0.002), (width, height)
    assert re.fullmatch(r"key: [78] pictures, largest difference [\d.e-]+", compare_images("key", kind, directory))


@pytest.mark.parametrize("name", REFUSED)
def test_another_is_refused_by_the_name_of_its_key_or_class(tmp_path: Path, name: str) -> None:
    model, facts, reason = REFUSED[name]
    write(tmp_path, model, facts)
    message = rf"members\.m: input\.image: preprocessor_config\.json: (found )?.*{reason}.*; allowed: "
    with pytest.raises(InvalidEnsemble, match=message):
        read(tmp_path)


def test_the_matrix_has_at_least_twenty_classes_that_are_served() -> None:
    classes = {facts.get("image_processor_type", facts.get("feature_extractor_type", "ViT")) for _, facts in SERVED.values()}
    assert len({re.sub("(ImageProcessor|FeatureExtractor)(Fast)?$", "", name) for name in classes}) >= 20


PUBLISHED = [*SERVED.values(), *((model, facts) for model, facts, _ in REFUSED.values())]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 300) | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["height", "width", "shortest_edge", "a"]), inner),
    max_leaves=5,
)
KEYS = sorted(
    {key for _, facts in PUBLISHED for key in facts} | {"resize", "preprocess", "crop_pct", "rescale_offset", "__class__"}
)


@settings(max_examples=3000)
@given(
    published=st.sampled_from(PUBLISHED),
    changes=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3),
    without=st.sets(st.sampled_from(KEYS), max_size=2),
    channels=st.sampled_from([3] * 8 + [1]) | VALUES,
)
def test_a_changed_file_gives_the_librarys_pixels_or_is_refused(
    published: tuple[str, dict[str, Any]], changes: dict[str, Any], without: set[str], channels: Any
) -> None:
    model, facts = published
    facts = {key: value for key, value in (facts | changes).items() if key not in without}
    with tempfile.TemporaryDirectory() as folder:
        directory = write(Path(folder), model, facts, num_channels=channels)
        try:
            kind = read(Path(folder))
        except InvalidEnsemble as refusal:
            assert "; allowed: " in str(refusal)  # noqa: PT017
            return
        picture = soften(31, 45, "L" if kind.spec.channels == 1 else "RGB")
        try:
            expected = ask_library(directory, picture)
        except Exception:  # which takes no picture then; every load finds that
            with pytest.raises(InvalidEnsemble, match="takes none of the pictures"):
                compare_images("key", kind, directory)
            return
        if math.prod(expected.shape) < 10**6 and np.isfinite(expected).all():
            assert find_error(kind, directory, picture) <= (1.001 if kind.spec.resize == "bilinear" else 0.01)
