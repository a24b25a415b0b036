"""The kinds of input files: how a mutated file is read, and what the result must agree with.

Each `read` gets a folder in which the mutated file lies and returns an outcome. It raises LepmergeError for a refused
file, and Fault if the result disagrees with the reference reader.
"""

import gzip
import io
import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import yaml
from frame import Fault
from mutation import mutated_bytes, mutated_json, mutated_lines
from tokenizers import Tokenizer

CORPUS = Path(__file__).parent / "corpus"


@dataclass(frozen=True)
class Kind:
    """One kind of file. name: of its folder in the corpus. file: name of the mutated file; empty: that of its seed.

    beside: corpus files that lie next to it, name → place in the corpus.
    """

    name: str
    file: str
    weight: int
    mutate: Callable[..., bytes]
    read: Callable[[Path, bytes], str]
    beside: tuple[tuple[str, str], ...] = ()

    @property
    def seeds(self) -> list[Path]:
        return sorted((CORPUS / self.name).iterdir())


def check(agrees: bool, what: str) -> None:
    if not agrees:
        raise Fault(what)


# safetensors


def mutated_safetensors(data: bytes, rng: Any, others: Sequence[bytes] = ()) -> bytes:
    """Mutate the header and write its new length, sometimes with as much data as it asks for; or mutate the bytes."""
    if rng.random() < 0.2:
        return mutated_bytes(data, rng, others)
    length = int.from_bytes(data[:8], "little")
    header = mutated_json(data[8 : 8 + length], rng, [other[8:] for other in others])
    body = data[8 + length :] if rng.random() < 0.7 else bytes(rng.choice((0, 16, 128, 256, 1000)))
    return len(header).to_bytes(8, "little") + header + body


def read_safetensors(folder: Path, data: bytes) -> str:
    from lepmerge.models.safetensors_io import TORCH_DTYPES, SafetensorsFile, StoredTensor

    file = SafetensorsFile(folder / "model.safetensors")
    try:
        expected = dict(safetensors.deserialize(data))
    except safetensors.SafetensorError as error:
        raise Fault(f"the safetensors library refuses it: {str(error).partition(':')[0][:60]}") from error
    check(file.entries.keys() == expected.keys(), "other tensors than the safetensors library")
    for name, entry in file.entries.items():
        check(list(entry.shape) == expected[name]["shape"], "another shape than the safetensors library")
        check(entry.dtype == expected[name]["dtype"], "another dtype than the safetensors library")
        tensor = StoredTensor.of(name, file).whole()
        check(tensor.dtype == TORCH_DTYPES[entry.dtype] and tuple(tensor.shape) == entry.shape, "another tensor")
        check(bytes(tensor.view(-1).view(_BYTE).numpy()) == bytes(expected[name]["data"]), "other bytes")
    return "agrees"


def read_index(folder: Path, data: bytes) -> str:
    from lepmerge.models.checkpoint import open_checkpoint
    from lepmerge.models.references import Reference

    for name, file in _shards().items():
        if not (folder / name).exists():
            (folder / name).write_bytes(file)
    model = open_checkpoint(Reference("model", folder))
    named = set(json.loads(data)["weight_map"].values())
    check(named <= _shards().keys(), "a file outside the folder")
    expected = {tensor for name in named for tensor in safetensors.safe_open(folder / name, "pt").keys()}
    check(model.tensors.keys() == expected, "other tensors than the files have")
    return "agrees"


@lru_cache
def _shards() -> dict[str, bytes]:
    import torch
    from safetensors.torch import save

    tables = {name: torch.zeros(8, 4) for name in ("model.embed_tokens.weight", "lm_head.weight")}
    shards = (tables, {"model.norm.weight": torch.ones(4)})
    return {f"model-0000{number}-of-00002.safetensors": save(shard) for number, shard in enumerate(shards, 1)}


# GGUF


def mutated_gguf(data: bytes, rng: Any, others: Sequence[bytes] = ()) -> bytes:
    """Mutate a header, usually with enough data behind it."""
    return mutated_bytes(data, rng, others) + bytes(rng.choice((0, 512, 40_000, 40_000, 40_000)))


def read_gguf(folder: Path, data: bytes) -> str:
    from gguf import GGUFReader

    from lepmerge.models.gguf_file import GgufFile
    from lepmerge.models.gguf_model import open_gguf
    from lepmerge.models.gguf_vocabulary import PREFIX

    path = folder / "model.gguf"
    file = GgufFile(path)
    if sum(len(str(field.value)) for field in file.fields.values()) < 3000:  # the gguf package is slow on long lists
        with np.errstate(all="ignore"):
            expected = GGUFReader(path)
        for tensor in expected.tensors:
            entry = file.entries[tensor.name]
            check(entry.shape == tuple(int(size) for size in reversed(tensor.shape)), "another shape than gguf")
            check(
                entry.type == tensor.tensor_type.value and entry.start == tensor.data_offset, "another place than gguf"
            )
        check(len(file.entries) == len(expected.tensors), "another number of tensors than gguf")
        keys = [key for key in expected.fields if not key.startswith("GGUF.")]
        check(list(file.fields) == keys, "other fields than gguf")
    if f"{PREFIX}tokens" not in file.fields:
        return "agrees"
    model = open_gguf(path, name="model")
    return read_vocabulary(model.vocabulary)


# tokenizers


def read_tokenizer_json(folder: Path, data: bytes) -> str:
    from lepmerge.vocabulary.vocabulary import Vocabulary

    return read_vocabulary(Vocabulary.in_folder(folder))


def read_vocabulary(vocabulary: Any) -> str:
    """Use a vocabulary as conversions do, and compare its ids with those of the tokenizers library."""
    from lepmerge.vocabulary.conversion import build_conversion
    from lepmerge.vocabulary.vocabulary import Vocabulary

    size = vocabulary.size
    if size > 100_000:
        return "too many ids"  # a table with so many rows would be needed
    other = Vocabulary(json.loads((CORPUS / "tokenizer/byte_level.json").read_bytes()))
    for old, new in ((vocabulary, other), (other, vocabulary)):
        if old.size:
            build_conversion(old, new, num_old_rows=old.size, num_rows=new.size)
    vocabulary.with_added_of(other)
    expected = vocabulary.tokenizer.get_vocab(with_added_tokens=False)
    check(expected.keys() == vocabulary.model_ids.keys(), "other tokens than the tokenizers library")
    twice = len(set(vocabulary.model_ids.values())) < len(vocabulary.model_ids)
    check(twice or expected == vocabulary.model_ids, "other ids than the tokenizers library")
    if vocabulary.encode([b"the quick", b" fox", "да".encode(), b"\xff"]) and vocabulary.spells(
        vocabulary.encode([b"quick"])[0], b"quick"
    ):
        return "agrees, spells"
    return "agrees"


def read_tokenizer_config(folder: Path, data: bytes) -> str:
    from lepmerge.vocabulary.autotokenizer import load_tokenizer, read_tokenizer

    found = read_tokenizer(folder)
    own = Tokenizer.from_str(json.dumps(found.spec))
    loaded = load_tokenizer(folder)
    text = "the quick <s> fox</s> <x>"
    if not isinstance(loaded.model_max_length, int | float):
        return "the reference fails"  # transformers compares the length with it
    check(loaded.encode(text, add_special_tokens=False) == own.encode(text, add_special_tokens=False).ids, "other ids")
    check(len(loaded) == own.get_vocab_size(), "another number of tokens")
    return "agrees"


# configurations


def read_config(folder: Path, data: bytes) -> str:
    from lepmerge.models.checkpoint import open_checkpoint
    from lepmerge.models.configs import context_in, end_ids, ties, vocab_size
    from lepmerge.models.references import Reference

    if not (folder / "model.safetensors").exists():
        (folder / "model.safetensors").write_bytes(_tables())
    model = open_checkpoint(Reference("model", folder))
    check(model.num_rows == 280 and vocab_size(model.config) in (280, None), "another number of rows")
    context_in(model.config)
    end_ids(model.config)
    tied, _ = ties(model.config)
    check(model.tied is False or tied is not False, "a tie that the config does not have")
    larger = model.vocabulary.with_added_of(_other_vocabulary())
    changed = model.with_tables({role: model.table(role) for role in model.tables}, larger)
    json.dumps(changed.config)
    return "agrees"


@lru_cache
def _tables() -> bytes:
    import torch
    from safetensors.torch import save

    generator = torch.Generator().manual_seed(0)
    names = ("model.embed_tokens.weight", "lm_head.weight")
    return save({name: torch.randn(280, 16, generator=generator) for name in names})


@lru_cache
def _other_vocabulary() -> Any:
    from lepmerge.vocabulary.vocabulary import Vocabulary

    return Vocabulary(json.loads((CORPUS / "tokenizer/plain.json").read_bytes()))


def read_adapter(folder: Path, data: bytes) -> str:
    from lepmerge.models.adapter_config import AdapterConfig

    config = AdapterConfig.in_folder(folder)
    for module in ("model.layers.0.self_attn.q_proj", "model.layers.11.mlp.up_proj", "model.embed_tokens", ""):
        check(math.isfinite(config.scaling(module)) and config.rank(module) > 0, "an impossible scaling")
        config.targets(module), config.saves(module), config.tokens_of(module)
    values = json.loads(data)
    rank = 8 if values.get("r") is None else values["r"]
    check(config.r == int(rank), "another rank than the file")
    check(len(config.unknown_keys) <= len(values), "unknown keys that the file does not have")
    return "agrees"


def read_recipe(folder: Path, data: bytes) -> str:
    from lepmerge.merge.recipe import load_recipe

    shutil.copy(CORPUS / "recipe/base.yaml", folder / "base.yaml")
    recipe = load_recipe(folder / "recipe.yaml")
    plain = yaml.load(data, yaml.CSafeLoader)
    check(set(plain.get("models") or ()) <= recipe.models.keys(), "other models than the file")
    check(len(recipe.steps) == len(plain.get("steps") or ()), "other steps than the file")
    return "agrees"


def read_training(folder: Path, data: bytes) -> str:
    from lepmerge.training.config import load_train_config

    config = load_train_config(folder / "train.yaml")
    plain = yaml.load(data, yaml.CSafeLoader)
    numbers = [key for key in ("batch_size", "warmup_steps", "checkpoint_every") if isinstance(plain.get(key), int)]
    check(all(getattr(config, key) == plain[key] for key in numbers), "other numbers than the file")
    json.dumps(config.plain())
    return "agrees"


# texts and results


def mutated_rows(data: bytes, rng: Any, others: Sequence[bytes] = ()) -> bytes:
    """Mutate one line of a .jsonl file as JSON, or the bytes."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    if rng.random() < 0.3 or not lines[at]:
        return mutated_bytes(data, rng, others)
    return b"\n".join([*lines[:at], mutated_json(lines[at], rng, others), *lines[at + 1 :]])


def read_chats(folder: Path, data: bytes) -> str:
    from lepmerge.chats import read_chats as chats_of

    chats = list(chats_of(folder / "chats.jsonl"))
    rows = [json.loads(line) for line in data.decode("utf-8-sig").split("\n") if line.strip()]
    expected = [[m["content"] for m in row["messages"]] if "messages" in row else [row["prompt"]] for row in rows]
    check([[message["content"] for message in chat.messages] for chat in chats] == expected, "other messages")
    return "agrees"


def read_text(folder: Path, data: bytes) -> str:
    from lepmerge.progress import no_progress
    from lepmerge.text_files import Counts, kind_of, texts_of

    (file,) = folder.iterdir()
    counts = Counts()
    found = list(texts_of(file, "text", no_progress, counts=counts))
    check(len(found) == counts.texts, "another count of texts")
    if file.suffix == ".gz":
        data = gzip.decompress(data)
    elif file.suffix == ".zst":
        import zstandard

        data = zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True).read()
    if kind_of(file) == ".jsonl":
        rows = [json.loads(line) for line in data.decode("utf-8-sig").split("\n") if line.strip()]
        expected = [row["text"] for row in rows if isinstance(row.get("text"), str)]
        expected = [text for text in expected if text.strip() and "\0" not in text and _encodes(text)]
        check(found == expected, "other rows")
    elif kind_of(file) == ".txt":
        text = data.decode("utf-8-sig")
        expected = "".join(paragraph for paragraph in _paragraphs(text) if "\0" not in paragraph)
        check("\n".join(found).split() == expected.split(), "other paragraphs")
    return "agrees"


def _paragraphs(text: str) -> list[str]:
    """Return the paragraphs of a text, line by line."""
    paragraphs = [""]
    for line in io.StringIO(text, newline="\n"):
        if line.strip():
            paragraphs[-1] += line
        else:
            paragraphs.append("")
    return paragraphs


def _encodes(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def read_results(folder: Path, data: bytes) -> str:
    from lepmerge.comparison.darumeru import GROUPS, as_records, cells, read_results

    (row,) = rows = read_results([folder / "results.json"])
    for each in rows:
        cells(each, row)
    json.dumps(as_records(rows, row))
    results = json.loads(data)["results"]
    for group, tasks in GROUPS.items():
        found = [results.get(f"darumeru_{task}", {}).get("score,none") for task in tasks]
        expected = None if None in found else sum(found) / len(found)
        same = row.scores[group] == expected or math.isclose(row.scores[group], expected, rel_tol=1e-9)
        check(same, f"another mean of {group}")
    return "agrees"


def _torch_byte() -> Any:
    import torch

    return torch.uint8


_BYTE = _torch_byte()
GENERIC = (("tokenizer.json", "tokenizer/byte_level.json"),)
KINDS = (
    Kind("safetensors", "model.safetensors", 400, mutated_safetensors, read_safetensors),
    Kind("index", "model.safetensors.index.json", 78, mutated_json, read_index, (("config.json", "other/eight.json"),)),
    Kind("gguf", "model.gguf", 180, mutated_gguf, read_gguf),
    Kind("tokenizer", "tokenizer.json", 60, mutated_json, read_tokenizer_json),
    Kind("tokenizer_config", "tokenizer_config.json", 4, mutated_json, read_tokenizer_config, GENERIC),
    Kind("config", "config.json", 8, mutated_json, read_config, GENERIC),
    Kind("adapter", "adapter_config.json", 100, mutated_json, read_adapter),
    Kind("recipe", "recipe.yaml", 15, mutated_lines, read_recipe),
    Kind("training", "train.yaml", 15, mutated_lines, read_training),
    Kind("chats", "chats.jsonl", 60, mutated_rows, read_chats),
    Kind("text", "", 60, mutated_bytes, read_text),
    Kind("results", "results.json", 20, mutated_json, read_results),
)
"""The weights add up to 1000."""
