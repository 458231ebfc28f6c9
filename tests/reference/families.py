"""Hugging Face directories of text models by family: the names and values of published configurations, tiny seeded weights."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

t: Any = transformers
CORPUS = [
    "The quick brown fox jumps over 13 lazy dogs. the cat sleeps",
    "Crème brûlée naïve café Ångström Ñandú",
    "the Cat CAT cat movie MOVIE",
    "东京 北京 高い タワー",
    "hello world, this is very good; that was bad!",
    "3.14159 x 10 = $1,234.56 @user #tag",
    "don't can't o'clock",
    "a b c d e f g h i j k l m n o p q r s t u v w x y z A B C D E F G H I J K L M N O P Q",
    "R S T U V W X Y Z 0 1 2 3 4 5 6 7 8 9",
]
TEXTS = [
    "The Cat sleeps",
    " two spaces  in front",
    "Crème brûlée, NAÏVE café",
    "東京 and 北京",
    "it costs $1,234.56 🙂",
    "don't!",
    "a",
    "inside [SEP] and </s> <pad> [MASK] <|endoftext|>",
    "very good movie " * 40,
]
PAIRS = [
    ("The Cat sleeps", "the dog runs, very fast"),
    ("bad", "good movie " * 40),
    ("hello world " * 30, "b"),
    ("é", "</s> [SEP]"),
]
POSITIONS = 64
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "initializer_range": 0.4,
}
DECODER: dict[str, Any] = SMALL | {
    "num_key_value_heads": 2,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}


def wordpiece(cased: bool) -> dict[str, int]:
    """Train a vocabulary of word pieces."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=not cased)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=260, special_tokens=special, show_progress=False))
    return dict(tokenizer.get_vocab())


def bytes_(special: list[str], suffix: str = "") -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Train a vocabulary of bytes' pairs, and their merges."""
    ending: dict[str, Any] = {"end_of_word_suffix": suffix} if suffix else {}
    tokenizer = Tokenizer(models.BPE(**ending))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=620 if suffix else 360, special_tokens=special, initial_alphabet=alphabet, show_progress=False, **ending
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def unigram(special: list[str]) -> list[tuple[str, float]]:
    """Train pieces as SentencePiece has them, with special ones in front."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator(CORPUS, trainers.UnigramTrainer(vocab_size=200, unk_token="<unk>", show_progress=False))
    found = json.loads(tokenizer.to_str())["model"]["vocab"]
    return [*((piece, 0.0) for piece in special), *((piece, score) for piece, score in found if piece not in special)]


def pieces(special: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Train a vocabulary of pairs of pieces with bytes to fall back on, as Llama has it, and their merges."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    byte = [f"<0x{number:02X}>" for number in range(256)]
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=520, special_tokens=[*special, *byte], show_progress=False)
    )
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


@dataclass(frozen=True)
class Family:
    """A published model: `tokenizer` makes its tokenizer, `config` its configuration for so many words."""

    tokenizer: Callable[[], Any]
    config: Callable[[int], Any]
    facts: dict[str, Any] = field(default_factory=dict)
    """What tokenizer_config.json says besides."""
    refused: str = ""
    """Part of the reason why it is refused; "" where it is served."""
    has_head: bool = True
    keys: str = ""
    """Keys of the member."""
    most: int = 3
    """How many of the texts can share a batch: a text with an end inside cannot, where a model counts the ends."""


def bert(cased: bool, tokenizer: Any = transformers.BertTokenizer, **options: Any) -> Callable[[], Any]:
    return lambda: tokenizer(vocab=wordpiece(cased), do_lower_case=not cased, model_max_length=POSITIONS, **options)


def roberta(**options: Any) -> Callable[[], Any]:
    def make() -> Any:
        vocab, merges = bytes_(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
        return t.RobertaTokenizer(vocab=vocab, merges=merges, model_max_length=POSITIONS, **options)

    return make


def gpt2(special: str, tokenizer: Any, **options: Any) -> Callable[[], Any]:
    def make() -> Any:
        vocab, merges = bytes_([special])
        return tokenizer(vocab=vocab, merges=merges, model_max_length=POSITIONS, **options)

    return make


def clip() -> Any:
    vocab, merges = bytes_(["<|startoftext|>", "<|endoftext|>"], "</w>")
    return t.CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=POSITIONS)


def sentencepiece(tokenizer: Any, special: list[str], **options: Any) -> Callable[[], Any]:
    return lambda: tokenizer(vocab=unigram(special), model_max_length=POSITIONS, **options)


def llama(**options: Any) -> Callable[[], Any]:
    def make() -> Any:
        vocab, merges = pieces(["<unk>", "<s>", "</s>"])
        return transformers.LlamaTokenizer(vocab=vocab, merges=merges, model_max_length=POSITIONS, **options)

    return make


def encoder(config: Any, **options: Any) -> Callable[[int], Any]:
    return lambda words: config(**SMALL | {"max_position_embeddings": POSITIONS} | options, vocab_size=words, num_labels=3)


def roberta_config(config: Any, **options: Any) -> Callable[[int], Any]:
    sizes: dict[str, Any] = {
        "max_position_embeddings": POSITIONS + 2,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "type_vocab_size": 1,
    }
    return encoder(config, **sizes | options)


def seq2seq(config: Any, **options: Any) -> Callable[[int], Any]:
    sizes: dict[str, Any] = {
        "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
        "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "init_std": 0.4, "max_position_embeddings": POSITIONS,
    }  # fmt: skip
    return lambda words: config(**sizes, vocab_size=words, num_labels=3, **options)


T5_SIZES: dict[str, Any] = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
    "num_labels": 3,
    "decoder_start_token_id": 0,
}
FAMILIES: dict[str, Family] = {
    "bert-base-uncased": Family(bert(False), encoder(t.BertConfig)),
    "bert-base-cased": Family(bert(True), encoder(t.BertConfig)),
    "bert-base-multilingual-cased": Family(bert(True, strip_accents=False), encoder(t.BertConfig)),
    "bert-base-chinese": Family(bert(False, tokenize_chinese_chars=True), encoder(t.BertConfig)),
    "distilbert-base-uncased": Family(
        bert(False),
        lambda words: t.DistilBertConfig(
            dim=32,
            n_layers=2,
            n_heads=4,
            hidden_dim=64,
            max_position_embeddings=POSITIONS,
            vocab_size=words,
            num_labels=3,
            initializer_range=0.4,
        ),
    ),
    "electra-small": Family(bert(False), encoder(t.ElectraConfig, embedding_size=16)),
    "mpnet-base": Family(
        lambda: t.MPNetTokenizer(
            vocab={word: at for at, word in enumerate(["<s>", "<pad>", "</s>", "[UNK]", "<mask>", *list(wordpiece(False))[5:]])},
            model_max_length=POSITIONS,
        ),
        encoder(t.MPNetConfig, max_position_embeddings=POSITIONS + 2, pad_token_id=1),
    ),
    "roberta-base": Family(roberta(), roberta_config(t.RobertaConfig)),
    "longformer-base": Family(roberta(), roberta_config(t.LongformerConfig, attention_window=[8, 8])),
    "bart-large-mnli": Family(roberta(), seq2seq(t.BartConfig, pad_token_id=1, bos_token_id=0, eos_token_id=2), most=1),
    "gpt2": Family(
        gpt2("<|endoftext|>", t.GPT2Tokenizer, pad_token="<|endoftext|>"),
        lambda words: t.GPT2Config(
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=POSITIONS,
            vocab_size=words,
            num_labels=3,
            initializer_range=0.4,
            bos_token_id=0,
            eos_token_id=0,
        ),
    ),
    "gpt2 without a pad token": Family(
        gpt2("<|endoftext|>", t.GPT2Tokenizer),
        lambda words: t.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=POSITIONS, vocab_size=words, num_labels=3),
        refused="pad_token",
    ),
    "qwen2": Family(
        gpt2("<|endoftext|>", t.Qwen2Tokenizer), lambda words: t.Qwen2Config(**DECODER, vocab_size=words, num_labels=3)
    ),
    "llama": Family(llama(pad_token="</s>"), lambda words: t.LlamaConfig(**DECODER, vocab_size=words, num_labels=3)),
    "llama that pads on the left": Family(
        llama(pad_token="</s>", padding_side="left"),
        lambda words: t.LlamaConfig(**DECODER | {"pad_token_id": -1}, vocab_size=words, num_labels=3),
    ),
    "albert-base-v2": Family(
        sentencepiece(t.AlbertTokenizer, ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]), encoder(t.AlbertConfig, embedding_size=16)
    ),
    "xlm-roberta-base": Family(
        sentencepiece(t.XLMRobertaTokenizer, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]), roberta_config(t.XLMRobertaConfig)
    ),
    "camembert-base": Family(
        sentencepiece(t.CamembertTokenizer, ["<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED"]),
        roberta_config(t.CamembertConfig),
    ),
    "deberta-v3-base": Family(
        sentencepiece(t.DebertaV2Tokenizer, ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"], unk_token="[UNK]"),
        encoder(
            t.DebertaV2Config, type_vocab_size=0, relative_attention=True, position_biased_input=False, pos_att_type=["p2c", "c2p"]
        ),
    ),
    "t5-small": Family(
        sentencepiece(t.T5Tokenizer, ["<pad>", "</s>", "<unk>"], extra_ids=4),
        lambda words: t.T5Config(**T5_SIZES, vocab_size=words),
        most=1,
    ),
    "t5-small's encoder": Family(
        sentencepiece(t.T5Tokenizer, ["<pad>", "</s>", "<unk>"], extra_ids=4),
        lambda words: t.T5Config(**T5_SIZES, vocab_size=words),
        has_head=False,
        keys='pooling = "mean"',
    ),
    "xlnet-base-cased": Family(
        sentencepiece(t.XLNetTokenizer, ["<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>"]),
        lambda words: t.XLNetConfig(
            d_model=32, n_layer=2, n_head=4, d_inner=64, vocab_size=words, num_labels=3, initializer_range=0.4
        ),
        refused="padding lies behind it",
    ),
    "fnet-base": Family(
        sentencepiece(t.FNetTokenizer, ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]),
        lambda words: t.FNetConfig(
            hidden_size=32, num_hidden_layers=2, intermediate_size=64, vocab_size=words, num_labels=3, pad_token_id=0
        ),
        refused="model_type",
    ),
    "clip-vit-base-patch32": Family(
        clip,
        lambda words: t.CLIPConfig(
            text_config=SMALL | {"vocab_size": words, "max_position_embeddings": POSITIONS, "eos_token_id": 1, "bos_token_id": 0},
            vision_config=SMALL | {"image_size": 32, "patch_size": 8},
            projection_dim=20,
        ),
        has_head=False,
    ),
    "modernbert-base": Family(
        bert(False), encoder(t.ModernBertConfig, pad_token_id=0, cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3)
    ),
}


def save_family(directory: Path, family: Family) -> Any:
    """Write a family's directory; gives the model, ready to be asked."""
    torch.manual_seed(7)
    tokenizer = family.tokenizer()
    config = family.config(max(tokenizer.get_vocab().values()) + 1)
    auto = t.AutoModelForSequenceClassification if family.has_head else t.AutoModel
    model = auto.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1 and parameter.std() < 0.1:
            parameter.data.normal_(0, 0.3)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | family.facts))
    return model


def copy_directory(source: Path, target: Path, **changes: Any) -> Path:
    """Copy a directory, with other facts in its tokenizer_config.json; None removes one."""
    shutil.copytree(source, target)
    path = target / "tokenizer_config.json"
    facts = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in facts.items() if value is not None}))
    return target
