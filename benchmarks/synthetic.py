"""Make checkpoints with random weights and byte-level BPE tokenizers of any size, without holding a model in memory.

python synthetic.py FOLDER --rows 128256 --width 1024 --layers 6 --seed 0
"""

import argparse
import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lepmerge.models.safetensors_io import build_header, to_bytes
from lepmerge.output.staging import write_all

LATIN = "etaoinshrdlcumwfgypbvkjxqz"
CYRILLIC = "оеаинтсрвлкмдпуяыьгзбчйхжшюцщэфъ"
BYTES = [*range(33, 127), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
OTHERS = [byte for byte in range(256) if byte not in BYTES]
ALPHABET = {**{byte: chr(byte) for byte in BYTES}, **{byte: chr(256 + n) for n, byte in enumerate(OTHERS)}}
BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TABLES = ("model.embed_tokens.weight", "lm_head.weight")
BLOCK_ROWS = 4096


def tokenizer_spec(size: int, *, added: int = 8, seed: int = 0) -> dict[str, Any]:
    """Return a byte-level tokenizer.json of `size` tokens, mostly Latin words. The last `added` tokens are special."""
    merges = _merges([], size - added - 256, LATIN, CYRILLIC, random.Random(seed), cyrillic_share=0.15)
    return _spec([ALPHABET[byte] for byte in range(256)], merges, [BOS, EOS, *_reserved(added - 2)])


def extended_spec(old: dict[str, Any], size: int, *, share: float, seed: int = 1) -> dict[str, Any]:
    """Return a tokenizer.json of `size` tokens, made from the first tokens of `old` and new Cyrillic words.

    share: the fraction that comes from `old`; with 1.0 all of `old` is kept. The added tokens are those of `old`.
    """
    added = [entry["content"] for entry in old["added_tokens"]]
    ordinary = size - len(added)
    pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in old["model"]["merges"]]
    first: dict[str, tuple[str, str]] = {}
    id_of = old["model"]["vocab"]
    for left, right in sorted(pairs, key=lambda pair: id_of["".join(pair)]):
        first.setdefault(left + right, (left, right))  # one merge per token is enough
    kept = [*first.values()][: int(share * ordinary) - 256]
    vocab = sorted(old["model"]["vocab"], key=old["model"]["vocab"].__getitem__)[:256]
    more = _merges(kept, ordinary - 256 - len(kept), CYRILLIC, LATIN, random.Random(seed), cyrillic_share=1.0)
    return {**_spec(vocab, [*kept, *more], added), "pre_tokenizer": old["pre_tokenizer"]}


def _spec(alphabet: list[str], merges: list[tuple[str, str]], added: list[str]) -> dict[str, Any]:
    tokens = list(dict.fromkeys([*alphabet, *(left + right for left, right in merges)]))
    assert len(tokens) == len(alphabet) + len(merges)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    split = {"type": "Split", "pattern": {"Regex": LLAMA3_SPLIT}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": len(tokens) + n, "content": content, **flags} for n, content in enumerate(added)],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {token: id for id, token in enumerate(tokens)},
            "merges": [list(merge) for merge in merges],
        },
    }


def _merges(
    known: list[tuple[str, str]], count: int, *scripts: Any, cyrillic_share: float = 0.0
) -> list[tuple[str, str]]:
    """Return `count` more merges: first of letters, then of words with another letter or a known piece."""
    *alphabets, generator = scripts
    seen = {left + right for left, right in known} | set(ALPHABET.values())
    merges: list[tuple[str, str]] = []

    def merge(left: str, right: str) -> bool:
        if left + right in seen or len(merges) == count:
            return False
        seen.add(left + right)
        merges.append((left, right))
        return True

    pieces: dict[bool, list[str]] = {False: [], True: []}
    letters: dict[bool, list[str]] = {False: [], True: []}
    for letter in "".join(sorted(alphabets)):
        symbols = [ALPHABET[byte] for byte in letter.encode()]
        if len(symbols) == 2:
            merge(*symbols)
        letters[len(symbols) == 2].append("".join(symbols))
    for cyrillic in (False, True):
        for letter in letters[cyrillic]:
            merge(ALPHABET[ord(" ")], letter)
            pieces[cyrillic] += [letter, ALPHABET[ord(" ")] + letter]
    while len(merges) < count:
        cyrillic = generator.random() < cyrillic_share
        left = generator.choice(pieces[cyrillic])
        right = generator.choice(letters[cyrillic] if generator.random() < 0.6 else pieces[cyrillic][:2000:2])
        if right[0] != ALPHABET[ord(" ")] and len(left + right) <= (24 if cyrillic else 12) and merge(left, right):
            pieces[cyrillic].append(left + right)
    return merges


def _reserved(count: int) -> list[str]:
    return [f"<|reserved_special_token_{number}|>" for number in range(count)]


def save_tokenizer(folder: Path, spec: dict[str, Any], *, chat: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(spec, ensure_ascii=False))
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS}
    if chat:
        config["chat_template"] = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))


def save_model(
    folder: Path,
    *,
    rows: int,
    width: int,
    layers: int,
    intermediate: int,
    heads: int,
    kv_heads: int,
    tied: bool = False,
    embeddings_only: bool = False,
    like: Path | None = None,
    seed: int = 0,
    shards: int = 1,
) -> Path:
    """Write a bfloat16 Llama checkpoint. With `like`, its tables differ only a little from those of that base.

    Like real embedding tables, these have columns of different size and a few common directions (condition number about
    100 after scaling the columns). The body's weights repeat one random block.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": rows,
        "hidden_size": width,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    shapes = {name: (rows, width) for name in TABLES[: 1 if tied else 2]}
    if not embeddings_only:
        shapes = {TABLES[0]: (rows, width), **_body(width, layers, intermediate, width // heads * kv_heads), **shapes}
    names = list(shapes)
    groups = [names[len(names) * part // shards : len(names) * (part + 1) // shards] for part in range(shards)]
    files = {
        "embeddings.safetensors"
        if embeddings_only
        else "model.safetensors"
        if shards == 1
        else f"model-{part:05}-of-{shards:05}.safetensors": group
        for part, group in enumerate(groups, 1)
    }
    block = _random(BLOCK_ROWS, width, torch.Generator().manual_seed(seed))
    for file_name, group in files.items():
        header = build_header({name: ("BF16", shapes[name]) for name in group}, {"format": "pt"})
        with (folder / file_name).open("wb") as file:
            write_all(file.fileno(), header.encoded)
            for name in group:
                rows_of = _table(name, rows, width, seed, like) if name in TABLES else _repeated(block, shapes[name])
                for data in rows_of:
                    write_all(file.fileno(), to_bytes(data))
    if shards > 1:
        weight_map = {name: file_name for file_name, group in files.items() for name in group}
        index = {"metadata": {"total_size": sum(2 * _numel(shapes[n]) for n in names)}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return folder


def _body(width: int, layers: int, intermediate: int, kv_width: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        shapes[prefix + "self_attn.q_proj.weight"] = shapes[prefix + "self_attn.o_proj.weight"] = (width, width)
        shapes[prefix + "self_attn.k_proj.weight"] = shapes[prefix + "self_attn.v_proj.weight"] = (kv_width, width)
        shapes[prefix + "mlp.gate_proj.weight"] = shapes[prefix + "mlp.up_proj.weight"] = (intermediate, width)
        shapes[prefix + "mlp.down_proj.weight"] = (width, intermediate)
        shapes[prefix + "input_layernorm.weight"] = shapes[prefix + "post_attention_layernorm.weight"] = (width,)
    return {**shapes, "model.norm.weight": (width,)}


def _numel(shape: tuple[int, ...]) -> int:
    return shape[0] * (shape[1] if len(shape) > 1 else 1)


def _random(rows: int, width: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(rows, width, generator=generator).mul_(0.02).to(torch.bfloat16)


def _repeated(block: torch.Tensor, shape: tuple[int, ...]) -> Iterator[torch.Tensor]:
    flat, left = block.view(-1), _numel(shape)
    while left:
        yield flat[: min(left, len(flat))]
        left -= min(left, len(flat))


def _table(name: str, rows: int, width: int, seed: int, like: Path | None) -> Iterator[torch.Tensor]:
    """Yield blocks of rows: random ones, or the rows of `like` changed by a map of rank 8 and some noise."""
    from safetensors import safe_open

    generator = torch.Generator().manual_seed(1000 * seed + TABLES.index(name))
    scale_D = 0.02 * torch.logspace(0, -2, width)[torch.randperm(width, generator=generator)]
    down, up = torch.randn(width, 8, generator=generator), torch.randn(8, width, generator=generator)
    handle = safe_open(_file_of(like, name), "pt").get_slice(name) if like else None
    for start in range(0, rows, BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, rows)
        if handle is None:
            common = torch.randn(stop - start, 8, generator=generator) @ up
            out = torch.randn(stop - start, width, generator=generator).add_(common, alpha=2.0).mul_(scale_D)
        else:
            base = handle[start:stop].float()
            noise = torch.randn(stop - start, width, generator=generator).mul_(0.05 * scale_D)
            out = base + (base @ down) @ up * (0.1 / width) + noise
        yield out.to(torch.bfloat16)


def _file_of(folder: Path, name: str) -> str:
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as handle:
            if name in handle.keys():
                return str(path)
    raise FileNotFoundError(f"{name} in {folder}")


def save_setting(
    folder: Path,
    *,
    old_rows: int,
    new_rows: int,
    width: int,
    layers: int,
    intermediate: int,
    heads: int,
    kv_heads: int,
    tied: bool = False,
    share: float = 0.65,
    shards: int = 1,
    whole: bool = True,
) -> None:
    """Write base, instruct and adapted models and a recipe with `method: conversion`.

    Base and adapted are embeddings-only folders.
    """
    shape = {
        "width": width,
        "layers": layers,
        "intermediate": intermediate,
        "heads": heads,
        "kv_heads": kv_heads,
        "tied": tied,
    }
    old = tokenizer_spec(old_rows)
    new = extended_spec(old, new_rows, share=share)
    few = {"embeddings_only": not whole, "shards": shards if whole else 1}
    save_model(folder / "base", rows=old_rows, seed=0, **shape, **few)
    save_model(folder / "adapted", rows=new_rows, seed=2, **shape, **few)
    save_model(folder / "instruct", rows=old_rows, seed=1, like=folder / "base", **shape, shards=shards)
    for name, spec in (("base", old), ("instruct", old), ("adapted", new)):
        save_tokenizer(folder / name, spec, chat=name == "instruct")
    (folder / "recipe.yaml").write_text(RECIPE)


RECIPE = """\
models: {base: base, instruct: instruct, adapted: adapted}
steps:
  - {op: propagate_embeddings, base: base, adapted: adapted, method: conversion}
output: {path: out}
"""


def save_pico(folder: Path) -> Path:
    """Write models with almost nothing to read, so that a run on them measures the start-up cost."""
    save_setting(folder, old_rows=600, new_rows=700, width=64, layers=2, intermediate=128, heads=4, kv_heads=2)
    (folder / "copy.yaml").write_text("models: {instruct: instruct}\nsteps: []\noutput: {path: copied}\n")
    return folder


def remove(folder: Path) -> None:
    """Delete a folder of this benchmark, and wait for the disk before the next measurement."""
    shutil.rmtree(folder, ignore_errors=True)
    os.sync()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    for option, value in {
        "old-rows": 128256,
        "new-rows": 48000,
        "width": 1024,
        "layers": 6,
        "intermediate": 2816,
    }.items():
        parser.add_argument(f"--{option}", type=int, default=value)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--tied", action="store_true")
    parser.add_argument("--embeddings-only", action="store_true", help="base and adapted hold their tables only")
    parser.add_argument("--pico", action="store_true", help="write the smallest models and ignore the other options")
    options = vars(parser.parse_args())
    folder, whole, pico = options.pop("folder"), not options.pop("embeddings_only"), options.pop("pico")
    save_pico(folder) if pico else save_setting(folder, whole=whole, **options)


if __name__ == "__main__":
    main()
