"""Hugging Face directories of tiny models: real architectures from their configurations, with seeded random weights."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *(f"word{number}" for number in range(60))]
TEXTS = ["word1 word2 word3", "word4", "word5 nothing word7 word8 word9 word10", " ".join(f"word{n}" for n in range(40))]
MAX_TOKENS = 16

logging.getLogger("transformers").setLevel(logging.ERROR)


def make_image(seed: int = 0, width: int = 50, height: int = 40) -> Image.Image:
    """Make a picture of soft colours: pure noise would make every way of resizing look alike."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def make_tokenizer() -> Any:
    """Make a tokenizer of words, with a beginning and an end around each text."""
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = [("[CLS]", 1), ("[SEP]", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=marks)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=MAX_TOKENS, **names)


def save(directory: Path, model: Any, *parts: Any) -> Any:
    """Write a model and its processors into `directory`; gives the model, ready to be asked."""
    model.eval().save_pretrained(directory)
    for part in parts:
        part.save_pretrained(directory)
    return model


def save_vit(directory: Path) -> Any:
    """Write a ViT that classifies pictures of 32 x 24 pixels into 5 classes."""
    torch.manual_seed(1)
    config = transformers.ViTConfig(**SMALL | {"num_labels": 5}, image_size=[24, 32], patch_size=8)
    processor = ViTImageProcessorPil(size={"height": 24, "width": 32}, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4])
    return save(directory, transformers.ViTForImageClassification(config), processor)


def save_bert(directory: Path) -> Any:
    """Write a BERT that classifies texts of up to 16 tokens into 5 classes."""
    torch.manual_seed(2)
    # Of weights as small as the library's own every text would get the same answer.
    sizes = SMALL | {"num_labels": 5, "initializer_range": 0.5}
    config = transformers.BertConfig(**sizes, vocab_size=len(WORDS), max_position_embeddings=MAX_TOKENS)
    return save(directory, transformers.BertForSequenceClassification(config), make_tokenizer())


def save_clip(directory: Path) -> Any:
    """Write a CLIP of two towers, with 20 features in common; its pictures are cropped to 32 x 32 pixels."""
    torch.manual_seed(3)
    text = SMALL | {"vocab_size": len(WORDS), "max_position_embeddings": MAX_TOKENS, "eos_token_id": 2, "pad_token_id": 0}
    config = transformers.CLIPConfig(text_config=text, vision_config=SMALL | {"image_size": 32, "patch_size": 8}, projection_dim=20)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32})
    return save(directory, transformers.CLIPModel(config), processor, make_tokenizer())


def save_siglip(directory: Path) -> Any:
    """Write a SigLIP of two towers, whose texts are always padded to 16 tokens and have no mask."""
    torch.manual_seed(4)
    text = SMALL | {"vocab_size": len(WORDS), "max_position_embeddings": MAX_TOKENS, "pad_token_id": 0, "eos_token_id": 2}
    config = transformers.SiglipConfig(text_config=text, vision_config=SMALL | {"image_size": 32, "patch_size": 8})
    tokenizer = make_tokenizer()
    tokenizer.model_input_names = ["input_ids"]
    processor = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    return save(directory, transformers.SiglipModel(config), processor, tokenizer)


def save_yolos(directory: Path) -> Any:
    """Write a YOLOS that finds up to 5 boxes of 3 classes in pictures of 48 x 32 pixels."""
    torch.manual_seed(5)
    config = transformers.YolosConfig(**SMALL | {"num_labels": 3}, image_size=[32, 48], patch_size=8, num_detection_tokens=5)
    processor = ViTImageProcessorPil(size={"height": 32, "width": 48})
    return save(directory, transformers.YolosForObjectDetection(config), processor)
