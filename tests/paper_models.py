"""Models with the paper's shapes that take no disk space (sparse files), and tokenizers of any size."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pico
from tokenizers import pre_tokenizers

from lepmerge.models.safetensors_io import build_header

LATIN = "etaoinshrdlcumwfgypbvkjxqz"
CYRILLIC = "оеаинтсрвлкмдпуяыьгзбчйхжшюцщэфъ"
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]
WIDTH, INNER, KEY_WIDTH, LAYERS = 4096, 14336, 1024, 32  # of Mistral-7B and of Llama-3-8B
TABLES = ("model.embed_tokens.weight", "lm_head.weight")


def shapes(rows: int, *, body: bool = True) -> dict[str, tuple[int, ...]]:
    """Return tensor → shape of Mistral-7B or Llama-3-8B with this number of rows in its tables."""
    found: dict[str, tuple[int, ...]] = dict.fromkeys(TABLES, (rows, WIDTH))
    for layer in range(LAYERS if body else 0):
        prefix = f"model.layers.{layer}."
        found |= {f"{prefix}self_attn.{part}_proj.weight": (WIDTH, WIDTH) for part in "qo"}
        found |= {f"{prefix}self_attn.{part}_proj.weight": (KEY_WIDTH, WIDTH) for part in "kv"}
        found |= {f"{prefix}mlp.{part}_proj.weight": (INNER, WIDTH) for part in ("gate", "up")}
        found |= {f"{prefix}mlp.down_proj.weight": (WIDTH, INNER)}
        found |= {f"{prefix}{part}_layernorm.weight": (WIDTH,) for part in ("input", "post_attention")}
    return found | ({"model.norm.weight": (WIDTH,)} if body else {})


def save_hole(path: Path, tensors: dict[str, tuple[int, ...]]) -> None:
    """Write a sparse safetensors file: a header, then a hole instead of data."""
    header = build_header({name: ("BF16", shape) for name, shape in tensors.items()}, {"format": "pt"})
    with path.open("wb") as file:
        file.write(header.encoded)
        file.truncate(header.file_size)


def config(rows: int) -> dict[str, Any]:
    sizes = {"hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "vocab_size": rows}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": False}
    return {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **sizes, **heads, "torch_dtype": "bfloat16"}


@dataclass(frozen=True)
class Family:
    """A kind of BPE vocabulary: byte-level as Llama-3 has it, or SentencePiece with byte fallback as Mistral has it."""

    byte_level: bool
    special: tuple[str, ...]

    @property
    def first(self) -> list[str]:
        """The tokens that are not made by a merge, without special tokens."""
        if self.byte_level:
            return sorted(pre_tokenizers.ByteLevel.alphabet())
        return [*BYTE_TOKENS, "▁", *LATIN, *CYRILLIC]

    def merges(self, count: int, *, letters: str, seed: int, known: Sequence[tuple[str, str]] = ()) -> list[Any]:
        """Return `known` and more merges, `count` in all: letters, then words that grow by a letter."""
        generator = random.Random(seed)
        seen = {*self.first, *(left + right for left, right in known)}
        merges = list(known)[:count]

        def merge(left: str, right: str) -> None:
            if left + right not in seen and len(merges) < count:
                seen.add(left + right)
                merges.append((left, right))

        alphabet = [self._symbols(letter) for letter in letters]
        for symbols in alphabet:
            if len(symbols) == 2:
                merge(*symbols)
        ends = ["".join(symbols) for symbols in alphabet]
        space = "Ġ" if self.byte_level else "▁"
        for end in ends:
            merge(space, end)
        pieces = [*ends, *(space + end for end in ends)]
        while len(merges) < count:
            left, right = generator.choice(pieces), generator.choice(ends)
            before = len(merges)
            if len(left) < 16:
                merge(left, right)
            if len(merges) > before:
                pieces.append(left + right)
        return merges

    def _symbols(self, letter: str) -> list[str]:
        if not self.byte_level:
            return [letter]
        tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return list(tokenizer.pre_tokenize_str(letter)[0][0])

    def bpe(self, size: int, merges: Sequence[tuple[str, str]]) -> dict[str, Any]:
        """Return the tokenizer.json of a BPE of `size` tokens: special ones, first ones, then merges."""
        wanted = size - len(self.special) - len(self.first)
        tokens = [*self.first, *(left + right for left, right in merges[:wanted])]
        tokens = [*tokens, *self.special] if self.byte_level else [*self.special, *tokens]
        assert len(tokens) == len(set(tokens)) == size
        ordinary = tokens[: -len(self.special)] if self.byte_level else tokens
        model = {
            "type": "BPE",
            "merges": [list(merge) for merge in merges[:wanted]],
            "byte_fallback": not self.byte_level,
        }
        model["vocab"] = {token: id for id, token in enumerate(ordinary)}
        return self._spec(model, tokens)

    def unigram(self, size: int, merges: Sequence[tuple[str, str]]) -> dict[str, Any]:
        """Return the tokenizer.json of a Unigram of `size` tokens with byte fallback."""
        special = ["<unk>", *(token for token in self.special if token != "<unk>")]
        words = ["".join(pair).replace("Ġ", "▁") for pair in merges]
        tokens = [*special, *BYTE_TOKENS, "▁", *LATIN, *CYRILLIC]
        tokens = list(dict.fromkeys([*tokens, *words]))[:size]
        assert len(tokens) == size
        model = {"type": "Unigram", "unk_id": 0, "byte_fallback": True}
        model["vocab"] = [[token, -float(place)] for place, token in enumerate(tokens)]
        spec = Family(False, self.special)._spec(model, tokens)
        metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": True}
        return {**spec, "pre_tokenizer": metaspace, "normalizer": None}

    def _spec(self, model: dict[str, Any], tokens: list[str]) -> dict[str, Any]:
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
        back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
        return {
            "version": "1.0",
            "added_tokens": [{"id": tokens.index(token), "content": token, **flags} for token in self.special],
            "normalizer": None if self.byte_level else replace,
            "pre_tokenizer": byte_level if self.byte_level else None,
            "post_processor": None,
            "decoder": byte_level
            if self.byte_level
            else {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}]},
            "model": model,
        }


def with_added(spec: dict[str, Any], contents: Sequence[str]) -> dict[str, Any]:
    """Return a tokenizer.json with more special tokens after the last id."""
    flags, size = spec["added_tokens"][0], max(spec["model"]["vocab"].values()) + 1
    added = [{**flags, "id": size + place, "content": content} for place, content in enumerate(contents)]
    return {**spec, "added_tokens": [*spec["added_tokens"], *added]}


def save_tokenizer(folder: Path, spec: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(spec, ensure_ascii=False), encoding="utf-8")
    special = [entry["content"] for entry in spec["added_tokens"]]
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": special[-2], "eos_token": special[-1]}
    (folder / "tokenizer_config.json").write_text(json.dumps({**names, "chat_template": pico.CHAT_TEMPLATE}))


def save_model(folder: Path, spec: dict[str, Any], *, body: bool = True) -> Path:
    """Write a model of the true shapes with this tokenizer; without a body, an embeddings-only folder."""
    save_tokenizer(folder, spec)
    rows = 1 + max(*(entry["id"] for entry in spec["added_tokens"]), len(spec["model"]["vocab"]) - 1)
    (folder / "config.json").write_text(json.dumps(config(rows)))
    save_hole(folder / ("model.safetensors" if body else "embeddings.safetensors"), shapes(rows, body=body))
    return folder
