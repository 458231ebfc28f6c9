"""The files that are damaged, each with how the service reads it, in a process whose end would be seen and told by its seed."""

import faulthandler
import gc
import hashlib
import logging
import os
import re
import shutil
import sys
import tempfile
import threading
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain
from json import dumps, loads
from pathlib import Path
from random import Random
from stat import S_ISDIR
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from tests.fusions import Example, example_head
from tests.graphs import move_weights, save_linear, save_text
from tests.pretrained import SMALL, WORDS, make_tokenizer, save, save_bert, save_clip, save_vit, save_yolos
from tests.reference.damage import WHOLE, damage_bytes, damage_document, damage_safetensors, list_places
from tests.secured import EVERYONE
from tests.sources import CPU, TRUSTS_ALL, export, load_folder, load_source
from twinfer.load.rows import read_rows as read_load
from twinfer.v1 import ensemble_pb2
from twinfer_server.auth_file import AuthFile
from twinfer_server.cli import load_command
from twinfer_server.draft import CannotDraft, draft_member, draft_towers
from twinfer_server.errors import InvalidEnsemble
from twinfer_server.fit.rows import InvalidRows, read_rows
from twinfer_server.fusion import Fitted, read_fitted, write_fitted
from twinfer_server.fusion.tensors import read_projection
from twinfer_server.inputs import InputLimits, make_input
from twinfer_server.rpc import Certificates
from twinfer_server.settings import InvalidSettings, ServerSettings
from twinfer_server.spec import UpstreamInputSpec, check_classes, read_labels, read_spec
from twinfer_server.trust import read_trust_list

TEXT, DOCUMENT, TOML, SAFETENSORS, BINARY = "text", "JSON", "TOML", "safetensors", "binary"
MOST_CHARS = 2_000
"""Of one line of an error's text."""
STUCK_SECONDS = 20
VECTOR = {"x": {"kind": "tensor", "dtype": "float32", "shape": [8]}}
DIGEST = hashlib.sha256(b"left").hexdigest()
PAIR = Example("log_opinion_pool", "classification").spec
ENSEMBLE = """
name = "damaged"
version = 3
task = "classification"
labels = "labels.txt"
policy = "best_effort"
execution = "serial"
deterministic = false
[members.vision]
model = "a.onnx"
precision = "fp32"
acceleration = "eager"
tolerance = 0.5
cuda_graph = true
priority = "high"
[members.vision.input.image]
kind = "image"
size = [16, 12]
color = "rgb"
fit = "crop"
resize = "bicubic"
resize_to = 18
crop_offset = "floor"
scaled_decoding = false
mean = [0.4, 0.5, 0.6]
std = [0.2, 0.3, 0.4]
required = true
[members.vision.output]
kind = "logits"
select = "logits"
[members.text]
model = "b.safetensors"
architecture = "python:m:a"
[members.text.input.text]
kind = "text"
tokenizer = "tokenizer.json"
max_tokens = 8
truncation_side = "left"
mask = true
token_types = true
pad_id = 0
pair = false
max_samples = 1
[members.text.input.x]
kind = "tensor"
dtype = "int32"
shape = [2, 3]
min = 0
max = 9
[members.text.input.y]
kind = "output"
member = "vision"
select = 0
[fusion]
method = "log_opinion_pool"
weights = {vision = 0.5, text = 1.0}
temperatures = {vision = 1.5}
[cascade]
first = "vision"
gate = 0.9
[batching]
max_batch_size = 8
max_delay_ms = 0.0
[memory]
budget_mb = 100.0
"""
MEMBER = """
name = "damaged"
version = 1
task = "{task}"
[members.m]
model = "{model}"
{input}
[fusion]
method = "{method}"
"""
INPUTS = {
    "text": '[members.m.input.text]\nkind = "text"',
    "pair": '[members.m.input.text]\nkind = "text"\npair = true',
    "image": '[members.m.input.image]\nkind = "image"',
    "vector": '[members.m.input.x]\nkind = "tensor"\ndtype = "float32"\nshape = [8]',
    "ids": '[members.m.input.text]\nkind = "text"\ntokenizer = "tokenizer.json"\nmax_tokens = 8\nmask = true',
}


@dataclass(frozen=True, slots=True)
class Damaged:
    """A kind of file: `make` writes it with all around it into a folder, `read` reads it as the service does.

    `names` is what every error's text has to have of the file's name or the key that names it.
    """

    file: str
    form: str
    make: Callable[[Path], None]
    read: Callable[[Path], object]
    names: str
    count: int
    errors: tuple[type[Exception], ...] = (InvalidEnsemble,)


def write_member(folder: Path, model: str, kind: str, task: str = "classification") -> None:
    method = {"embedding": "concatenation", "detection": "weighted_boxes"}.get(task, "log_opinion_pool")
    text = MEMBER.format(model=model, input=INPUTS[kind], task=task, method=method)
    (folder / "ensemble.toml").write_text(text)


def read_folder(folder: Path) -> None:
    """Read what is read before a model is: the spec, its classes, its inputs."""
    spec = read_spec(folder)
    check_classes(folder, spec, read_labels(folder, spec))
    for name, member in spec.members.items():
        for key, given in member.input.items():
            if not isinstance(given, UpstreamInputSpec):
                made = make_input(name, key, given, folder, InputLimits(), CPU)
                made.example(0, 8)


# --- what is written ----------------------------------------------------------------------------------------------------


def make_ensemble(folder: Path) -> None:
    (folder / "ensemble.toml").write_text(ENSEMBLE)
    (folder / "labels.txt").write_text("one\ntwo\nthree\n")
    make_tokenizer().save_pretrained(folder)
    save_linear(folder / "a.onnx")
    save_file({"weight": torch.ones(2)}, folder / "b.safetensors")


def make_hf(folder: Path, maker: Callable[[Path], Any], kind: str, task: str = "classification") -> None:
    maker(folder / "m")
    write_member(folder, "hf:m", kind, task)


def save_cross_encoder(directory: Path) -> None:
    sizes = SMALL | {"vocab_size": len(WORDS), "max_position_embeddings": 16, "num_labels": 3}
    save(directory, transformers.BertForSequenceClassification(transformers.BertConfig(**sizes)), make_tokenizer())


def save_roberta(directory: Path) -> None:
    sizes = SMALL | {"num_labels": 3, "vocab_size": len(WORDS), "max_position_embeddings": 20, "pad_token_id": 0}
    save(directory, transformers.RobertaForSequenceClassification(transformers.RobertaConfig(**sizes)), make_tokenizer())


def save_decoder(directory: Path) -> None:
    sizes: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16, "vocab_size": len(WORDS), "num_labels": 3}
    save(directory, transformers.GPT2ForSequenceClassification(transformers.GPT2Config(**sizes)), make_tokenizer())


def save_sentences(directory: Path) -> None:
    sizes = SMALL | {"vocab_size": len(WORDS), "max_position_embeddings": 16}
    save(directory, transformers.BertModel(transformers.BertConfig(**sizes)), make_tokenizer())
    kind = "sentence_transformers.models"
    names = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense"), ("3_Normalize", "Normalize")]
    modules = [{"idx": at, "name": str(at), "path": path, "type": f"{kind}.{name}"} for at, (path, name) in enumerate(names)]
    (directory / "modules.json").write_text(dumps(modules))
    (directory / "sentence_bert_config.json").write_text(dumps({"max_seq_length": 12, "do_lower_case": False}))
    facts = {"prompts": {"query": "word1 "}, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    (directory / "config_sentence_transformers.json").write_text(dumps(facts))
    for name, document in (
        ("1_Pooling", {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}),
        (
            "2_Dense",
            {"in_features": 32, "out_features": 8, "bias": True, "activation_function": "torch.nn.modules.activation.Tanh"},
        ),
    ):
        (directory / name).mkdir()
        (directory / name / "config.json").write_text(dumps(document))
    save_file({"linear.weight": torch.randn(8, 32), "linear.bias": torch.zeros(8)}, directory / "2_Dense" / "model.safetensors")


def save_in_parts(directory: Path) -> None:
    model = save_bert(directory)
    (directory / "model.safetensors").unlink()
    model.save_pretrained(directory, max_shard_size="20KB")


def save_pickled(directory: Path) -> None:
    model = save_bert(directory)
    (directory / "model.safetensors").unlink()
    torch.save(model.state_dict(), directory / "pytorch_model.bin")


def make_onnx(folder: Path, is_apart: bool) -> None:
    save_linear(folder / "a.onnx")
    if is_apart:
        move_weights(folder / "a.onnx", "a.data")
    write_member(folder, "a.onnx", "vector")


def make_text_onnx(folder: Path) -> None:
    save_text(folder / "a.onnx", 7, len(WORDS))
    make_tokenizer().save_pretrained(folder)
    write_member(folder, "a.onnx", "ids")


def make_weights(folder: Path) -> None:
    program = "from torch import nn\ndef build():\n    return nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 3))\n"
    (folder / "build.py").write_text(program)
    save_file({f"{at}.{name}": torch.rand(shape) for at, name, shape in [
        (0, "weight", (4, 8)), (0, "bias", (4,)), (1, "weight", (3, 4)), (1, "bias", (3,))
    ]}, folder / "w.safetensors")  # fmt: skip


def make_program(folder: Path) -> None:
    export(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval(), folder / "m.pt2")


def make_script(folder: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.Linear(3, 2).eval(), torch.ones(1, 3)), folder / "m.pt")


def make_fitted(folder: Path, fitted: Fitted) -> None:
    write_fitted(folder, fitted)


def make_projection(folder: Path) -> None:
    save_file({"weight": torch.ones(2, 3), "bias": torch.ones(2)}, folder / "p.safetensors")


def make_rows(folder: Path) -> None:
    make_ensemble(folder)
    rows = "".join(f"word{at},x.npy,x.npy,{['one', 'two', 'three'][at % 3]}\n" for at in range(20))
    (folder / "rows.csv").write_text("text,image,x,label\n" + rows)
    np.save(folder / "x.npy", np.zeros((2, 3), dtype=np.int32))


def make_certificates(folder: Path, authority: Path) -> None:
    for name in ("server.pem", "server.key", "ca.pem"):
        shutil.copy(authority / name, folder / name)


# --- how it is read -----------------------------------------------------------------------------------------------------


def read_model(folder: Path, model: str, **keys: object) -> None:
    load_source(model, folder, TRUSTS_ALL, **keys)


def read_callers(folder: Path) -> None:
    AuthFile(folder / "callers.toml", ServerSettings(tls_client_ca=folder / "callers.toml"))


def read_some_fitted(folder: Path, fitted: Fitted) -> None:
    read_fitted(folder, Example(fitted.method, "classification").spec, {name: fitted.digests[name] for name in PAIR.members})


def read_labelled(folder: Path) -> None:
    document = tomllib.loads(ENSEMBLE)
    spec = type(PAIR).model_validate(document, context={"folder": folder})
    rows = read_rows(folder, spec, ["one", "two", "three"], 3)
    for index in range(2):
        rows.read(index, spec.input_kinds())


def read_for_load(folder: Path) -> None:
    inputs = [ensemble_pb2.InputSpec(name="text", kind="text"), ensemble_pb2.InputSpec(name="x", kind="tensor")]
    read_load(folder, ensemble_pb2.Ensemble(inputs=inputs))


def read_certificates(folder: Path) -> None:
    names = {"tls_cert": "server.pem", "tls_key": "server.key", "tls_client_ca": "ca.pem"}
    Certificates({name: folder / file for name, file in names.items()}).latest()


def draft_graph(folder: Path) -> None:
    draft_member("m", str(folder / "a.onnx"), "tensor")


def draft_both(folder: Path) -> None:
    if draft_towers(f"hf:{folder / 'm'}") is None:
        draft_member("m", f"hf:{folder / 'm'}", "classification")


class Ended(Exception):
    """A command has ended with 1, and said why."""


def validate(folder: Path) -> None:
    """Run `twinfer validate`; raises Ended with what it says."""
    with patch("twinfer_server.terminal.end_process", sys.exit):
        done = CliRunner().invoke(load_command("validate"), [str(folder), "--device", "cpu", "--trust-code"])
    if done.exit_code == 0:
        return
    assert isinstance(done.exception, SystemExit), repr(done.exception)
    assert (done.exit_code, done.stdout, done.stderr[:7]) == (1, "", "error: "), done.output
    raise Ended(done.stderr.removeprefix("error: ").removesuffix("\n"))


FITTED = Fitted("log_opinion_pool", {"left": DIGEST, "right": ""}, {"left": 0.7}, {"right": 0.8}, gate=0.9, sharpness=0.5)
HEAD = example_head(hidden=4)
BERT, VIT = partial(make_hf, maker=save_bert, kind="text"), partial(make_hf, maker=save_vit, kind="image")
SENTENCES = partial(make_hf, maker=save_sentences, kind="text", task="embedding")
CLIP = partial(make_hf, maker=save_clip, kind="image", task="embedding")
OF_MEMBER = r"members\.m\b"
EMPTY: Callable[[Path], None] = lambda folder: None  # noqa: E731


def list_kinds(authority: Path) -> dict[str, Damaged]:
    """Return the kinds of files by name; `authority` is a folder of certificates."""
    hf = {
        "bert": (BERT, ("config.json", "tokenizer_config.json", "tokenizer.json"), 200),
        "cross-encoder": (partial(make_hf, maker=save_cross_encoder, kind="pair"), ("config.json", "tokenizer_config.json"), 150),
        "roberta": (partial(make_hf, maker=save_roberta, kind="text"), ("config.json", "tokenizer.json"), 150),
        "decoder": (partial(make_hf, maker=save_decoder, kind="text"), ("config.json",), 150),
        "sentences": (SENTENCES, (
            "config.json", "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json",
            "1_Pooling/config.json", "2_Dense/config.json",
        ), 100),
        "vit": (VIT, ("config.json", "preprocessor_config.json"), 300),
        "clip": (CLIP, ("config.json", "preprocessor_config.json"), 150),
        "detector": (partial(make_hf, maker=save_yolos, kind="image", task="detection"), ("config.json",), 150),
    }  # fmt: skip
    read = {
        f"{name}: {file}": Damaged(f"m/{file}", DOCUMENT, make, read_folder, OF_MEMBER, count)
        for name, (make, files, count) in hf.items()
        for file in files
    }
    loaded = {
        f"{name} loaded: {file}": Damaged(f"m/{file}", form, make, load_folder, OF_MEMBER, count)
        for name, make, file, form, count in (
            ("bert", BERT, "config.json", DOCUMENT, 80),
            ("bert", BERT, "model.safetensors", SAFETENSORS, 60),
            ("vit", VIT, "config.json", DOCUMENT, 50),
            ("sentences", SENTENCES, "modules.json", DOCUMENT, 60),
            ("sentences", SENTENCES, "1_Pooling/config.json", DOCUMENT, 60),
            ("sentences", SENTENCES, "2_Dense/model.safetensors", SAFETENSORS, 60),
            ("parts", partial(make_hf, maker=save_in_parts, kind="text"), "model.safetensors.index.json", DOCUMENT, 50),
            ("pickled", partial(make_hf, maker=save_pickled, kind="text"), "pytorch_model.bin", BINARY, 50),
        )
    }
    read |= {
        f"{name} validated: {file}": Damaged(file, form, make, validate, OF_MEMBER, 25, (Ended,))
        for name, make, file, form in (
            ("bert", BERT, "m/config.json", DOCUMENT),
            ("bert", BERT, "m/tokenizer.json", DOCUMENT),
            ("vit", VIT, "m/preprocessor_config.json", DOCUMENT),
            ("sentences", SENTENCES, "m/modules.json", DOCUMENT),
            ("graph", partial(make_onnx, is_apart=False), "a.onnx", BINARY),
        )
    }
    plain, apart = partial(make_onnx, is_apart=False), partial(make_onnx, is_apart=True)
    architecture = "python:build.py:build"
    script, program = partial(read_model, model="m.pt"), partial(read_model, model="m.pt2")
    weights = partial(read_model, model="w.safetensors", architecture=architecture)
    projection = lambda folder: read_projection(folder, "p.safetensors", 3)  # noqa: E731
    tables, settings = (InvalidRows,), (InvalidSettings,)
    pem = partial(make_certificates, authority=authority)
    return read | loaded | {
        "ensemble": Damaged("ensemble.toml", TOML, make_ensemble, read_folder, r"ensemble\.toml|members\.|labels", 1400),
        "labels": Damaged("labels.txt", TEXT, make_ensemble, read_folder, "labels", 250),
        "tokenizer": Damaged("tokenizer.json", DOCUMENT, make_ensemble, read_folder, r"tokenizer|max_tokens", 700),
        "callers": Damaged("callers.toml", TOML, lambda folder: write(folder / "callers.toml", EVERYONE), read_callers,
                           r"callers\.toml", 600, settings),
        "trust list": Damaged("trust.txt", TEXT, lambda folder: write(folder / "trust.txt", f"# some\n{DIGEST}\n{DIGEST}  # a\n"),
                              lambda folder: read_trust_list(folder / "trust.txt"), r"trust\.txt", 300),
        "certificate": Damaged("server.pem", TEXT, pem, read_certificates, "tls_cert", 200, settings),
        "key": Damaged("server.key", TEXT, pem, read_certificates, "tls_key", 200, settings),
        "authorities": Damaged("ca.pem", TEXT, pem, read_certificates, "tls_client_ca", 200, settings),
        "fitted pool": Damaged("fusion.safetensors", SAFETENSORS, partial(make_fitted, fitted=FITTED),
                               partial(read_some_fitted, fitted=FITTED), r"fusion\.(safetensors|method)", 400),
        "fitted head": Damaged("fusion.safetensors", SAFETENSORS, partial(make_fitted, fitted=HEAD),
                               partial(read_some_fitted, fitted=HEAD), r"fusion\.(safetensors|method)", 300),
        "projection": Damaged("p.safetensors", SAFETENSORS,
                              make_projection, projection, r"fusion\.projection", 300),
        "weights": Damaged("w.safetensors", SAFETENSORS, make_weights, weights, r"members\.vision\.", 500),
        "graph": Damaged("a.onnx", BINARY, plain, load_folder, OF_MEMBER, 500),
        "graph of texts": Damaged("a.onnx", BINARY, make_text_onnx, load_folder, OF_MEMBER, 300),
        "graph in two files": Damaged("a.onnx", BINARY, apart, load_folder, OF_MEMBER, 300),
        "data of a graph": Damaged("a.data", BINARY, apart, load_folder, OF_MEMBER, 100),
        "program": Damaged("m.pt2", BINARY, make_program, program, r"members\.vision\.", 150),
        "script": Damaged("m.pt", BINARY, make_script, script, r"members\.vision\.", 150),
        "rows": Damaged("rows.csv", TEXT, make_rows, read_labelled, r"rows\.csv", 250, tables),
        "array": Damaged("x.npy", BINARY, make_rows, read_labelled, r"rows\.csv", 200, tables),
        "rows of a load": Damaged("rows.csv", TEXT, make_rows, read_for_load, r"rows\.csv", 150, (ValueError, OSError)),
        "array of a load": Damaged("x.npy", BINARY, make_rows, read_for_load, r"rows\.csv", 150, (ValueError, OSError)),
        "drafted towers": Damaged("m/config.json", DOCUMENT, partial(make_hf, maker=save_clip, kind="image"), draft_both, "m", 150,
                                  (CannotDraft,)),
        "drafted classifier": Damaged("m/config.json", DOCUMENT, BERT, draft_both, "m", 150, (CannotDraft,)),
        "drafted graph": Damaged("a.onnx", BINARY, plain, draft_graph, "m", 150,
                                 (CannotDraft,)),
    }  # fmt: skip


def write(path: Path, text: str) -> None:
    path.write_text(text)


# --- one after the other ------------------------------------------------------------------------------------------------


class Listener(logging.Handler):
    """Keeps what is logged with a traceback, or as an error."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info or record.levelno >= logging.ERROR:
            self.heard.append(record.getMessage())


@dataclass(slots=True)
class Process:
    """What one process of trials has: a root that only trials write to, and files that hear what is printed."""

    root: Path
    marker: Path
    said: int
    listener: Listener

    @classmethod
    @cache
    def begin(cls, marker: Path) -> "Process":
        """Redirect all that is written, and keep temporary files inside the root; the parent removes it."""
        root = marker.parent / f"{marker.name}.root"
        for name in ("tmp", "home", "cwd"):
            (root / name).mkdir(parents=True)
        os.environ |= {"TMPDIR": str(root / "tmp"), "HOME": str(root / "home")}
        tempfile.tempdir = str(root / "tmp")
        os.chdir(root / "cwd")
        sys.dont_write_bytecode = True
        said = os.open(marker.parent / f"{marker.name}.said", os.O_CREAT | os.O_RDWR | os.O_APPEND)
        os.dup2(said, 1)
        os.dup2(said, 2)
        listener = Listener()
        logging.getLogger().addHandler(listener)
        torch.set_num_threads(1)
        return cls(root, marker, said, listener)


def try_all(marker: Path, authority: Path, name: str, numbers: Sequence[int]) -> tuple[dict[str, int], list[str]]:
    """Damage a file of the kind `name` once for each number and read it; return the tally, and what was wrong, by seed."""
    process, kind = Process.begin(marker), list_kinds(authority)[name]
    folder = process.root / hashlib.sha256(name.encode()).hexdigest()[:8]
    if not folder.exists():
        folder.mkdir()
        kind.make(folder)
        kind.read(folder)  # undamaged it has to be read; and what is imported and opened once is no leak
        os.truncate(process.said, 0)
    tally, wrong = {"read": 0, "refused": 0}, []
    path = folder / kind.file
    content = path.read_bytes()
    outside = process.root / "cwd" / "outside"
    outside.write_bytes(content)
    places = list(list_places(outside).items())
    for number in numbers:
        seed = f"{name}:{number}"
        process.marker.write_text(seed)
        path.unlink()
        try:
            if number < len(places):
                seed += f" ({places[number][0]})"
                places[number][1](path)
            else:
                path.write_bytes(damage(kind.form, content, number, Random(seed)))
            found, faults = try_one(process, kind, folder)
            tally[found] += 1
            wrong += [f"{seed}: {fault}" for fault in faults]
        finally:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
            path.write_bytes(content)
    return tally, wrong


def damage(form: str, content: bytes, number: int, random: Random) -> bytes:
    """Damage a file's content in one of the ways of its form, by number."""
    turn, way = divmod(number, 8)
    if form in (DOCUMENT, TOML) and way < 5:
        document = tomllib.loads(content.decode()) if form == TOML else loads(content)
        return damage_document(document, form == TOML, turn * 5 + way, random)
    if form == SAFETENSORS and way < 6:
        return damage_safetensors(content, number, random)
    if (form == BINARY and way < 7) or way == 5:
        return damage_bytes(content, random)
    return random.choice(WHOLE)(content, random)


def try_one(process: Process, kind: Damaged, folder: Path) -> tuple[str, list[str]]:
    """Read what is damaged; return what became of it, and what is wrong with that."""
    before, descriptors, threads = list_files(process.root), count_descriptors(), set(threading.enumerate())
    faulthandler.dump_traceback_later(STUCK_SECONDS, exit=True)
    found, faults = "read", []
    try:
        kind.read(folder)
    except kind.errors as error:
        found = "refused"
        faults = list(find_faults(str(error), kind.names))
    except BaseException as error:
        faults = [f"raised {type(error).__name__}: {error}"[:500]]
        trace = error.__traceback__
        while trace is not None:
            where = trace.tb_frame.f_code.co_filename
            faults[0] += f" < {where.rpartition('/')[2]}:{trace.tb_lineno}" if "twinfer_server" in where else ""
            trace = trace.tb_next
    faulthandler.cancel_dump_traceback_later()
    sys.stdout.flush()
    sys.stderr.flush()
    if (printed := os.pread(process.said, 4096, 0)) and not is_known(printed, found):
        faults.append(f"printed {printed[:300]!r}")
    os.truncate(process.said, 0)
    faults += [f"logged {text!r}" for text in process.listener.heard]
    process.listener.heard.clear()
    if count_descriptors() > descriptors:
        gc.collect()
        if count_descriptors() > descriptors:
            faults.append("left a file open")
    for thread in set(threading.enumerate()) - threads:
        gc.collect()  # a stream's thread ends once nothing refers to the stream
        thread.join(1)
        if thread.is_alive():
            faults.append(f"left the thread {thread.name}")
    if (after := list_files(process.root)) != before:
        faults.append(f"left behind {set(after) ^ set(before)}")
    return found, faults


def find_faults(text: str, names: str) -> Iterator[str]:
    """Yield what is wrong with an error's text: it names file or key, in lines that a terminal shows."""
    for line in text.split("\n"):
        if not line.isprintable():
            yield f"said what cannot be shown: {line[:MOST_CHARS]!r}"
        if len(line) > MOST_CHARS:
            yield f"said a line of {len(line)} characters: {line[:300]}"
        if not re.search(names, line):
            yield f"named neither file nor key: {line[:300]}"


def is_known(printed: bytes, found: str) -> bool:
    """Whether what was printed is of tokenizers, which tells of a panic before it raises it, and of a key that it does not know."""
    return printed.startswith(b"Ignored unknown kwarg option") or (b"panicked at" in printed and found == "refused")


def list_files(root: Path) -> list[tuple[object, ...]]:
    """List what is in a folder, with what changes when it is written to."""
    found = chain.from_iterable((os.path.join(top, name) for name in (*folders, *files)) for top, folders, files in os.walk(root))
    stats = ((path, os.lstat(path)) for path in found)
    return sorted((path, *([] if S_ISDIR(stat.st_mode) else [stat.st_size, stat.st_mtime_ns])) for path, stat in stats)


def count_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
