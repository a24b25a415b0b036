"""Convert the vocabulary of a GGUF file to a parsed tokenizer.json."""

from collections.abc import Mapping
from typing import Any

from lepmerge.errors import VocabularyError
from lepmerge.models.gguf_file import GgufFile
from lepmerge.models.gguf_vocabulary import BYTE, CONTROL, PREFIX, UNKNOWN, UNUSED, USER_DEFINED

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTES: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_MODEL: dict[str, Any] = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
}


def _sequence(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(parts)}


def _words(digits: str) -> dict[str, Any]:
    """Return the pre-tokenizer of Llama 3 and Qwen 2. They differ only in how many digits form one word."""
    split = {"type": "Split", "pattern": {"Regex": _WORDS % digits}, "behavior": "Isolated", "invert": False}
    return _sequence(split, {**_BYTES, "use_regex": False})


PRE_TOKENIZERS: dict[str, tuple[dict[str, Any] | None, dict[str, Any]]] = {
    "gpt-2": (None, _BYTES),
    "smollm": (None, _sequence({"type": "Digits", "individual_digits": True}, _BYTES)),
    "llama-bpe": (None, _words("{1,3}")),
    "qwen2": ({"type": "NFC"}, _words("")),
}
"""`tokenizer.ggml.pre` → (normalizer, pre-tokenizer) as in tokenizer.json."""


def tokenizer_spec(file: GgufFile) -> dict[str, Any]:
    """Return the vocabulary of a GGUF file as a parsed tokenizer.json.

    Raises:
        VocabularyError: it is neither byte-level nor SentencePiece BPE, or its pre-tokenizer is unknown.
    """
    tokens, types = file.value(f"{PREFIX}tokens"), file.value(f"{PREFIX}token_type")
    if not isinstance(tokens, list) or types is None or len(types) != len(tokens):
        raise VocabularyError(f"{file.path} has no tokens with their types")
    type_of = {token: int(type) for token, type in zip(tokens, types, strict=True)}
    vocab = {token: id for id, token in enumerate(tokens) if type_of[token] != UNUSED}
    added = [
        {"id": id, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": type_of[token] != USER_DEFINED}
        for token, id in vocab.items()
        if type_of[token] in (CONTROL, USER_DEFINED, UNKNOWN)
    ]  # fmt: skip
    kind = file.value(f"{PREFIX}model")
    if kind == "gpt2":
        merges = [merge.split(" ", 1) for merge in file.value(f"{PREFIX}merges") or []]
        model, parts = {"vocab": vocab, "merges": merges}, _byte_level_parts(file)
    elif kind == "llama":
        model, parts = _sentencepiece_model(file, vocab, type_of), _sentencepiece_parts(file)
    else:
        raise VocabularyError(
            f"{file.path}: its tokenizer model is {kind!r}; lepmerge reads byte-level BPE (gpt2) and SentencePiece BPE "
            f"(llama)"
        )
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, **parts,
            "post_processor": None, "model": {**_MODEL, **model}}  # fmt: skip


def merges_of_scores(scores: Mapping[str, float]) -> list[list[str]]:
    """Return the merges that SentencePiece scores imply: every split of a token into two tokens, best token first."""
    found = []
    for token, score in scores.items():
        splits = ((token[:place], token[place:]) for place in range(1, len(token)))
        found += [(-score, left, right) for left, right in splits if left in scores and right in scores]
    order = {token: place for place, token in enumerate(scores)}
    return [[left, right] for _, left, right in sorted(found, key=lambda m: (m[0], order[m[1]], order[m[2]]))]


def _byte_level_parts(file: GgufFile) -> dict[str, Any]:
    pre = file.value(f"{PREFIX}pre")
    if pre not in PRE_TOKENIZERS:
        raise VocabularyError(
            f"{file.path}: its pre-tokenizer {pre!r} is not known; name the folder or Hub id of the original model "
            f"(known are {', '.join(PRE_TOKENIZERS)})"
        )
    normalizer, pre_tokenizer = PRE_TOKENIZERS[pre]
    return {"normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "decoder": _BYTES}


def _sentencepiece_model(file: GgufFile, vocab: Mapping[str, int], type_of: Mapping[str, int]) -> dict[str, Any]:
    scores = file.value(f"{PREFIX}scores")
    if scores is None or len(scores) != len(type_of):
        raise VocabularyError(f"{file.path} has no score for each token")
    others = (BYTE, CONTROL, UNKNOWN)
    pieces = {token: float(scores[id]) for token, id in vocab.items() if type_of[token] not in others}
    unknown = next((token for token in vocab if type_of[token] == UNKNOWN), None)
    merges = merges_of_scores(pieces)
    return {"vocab": vocab, "merges": merges, "byte_fallback": True, "fuse_unk": True, "unk_token": unknown}


def _sentencepiece_parts(file: GgufFile) -> dict[str, Any]:
    add_prefix = file.value(f"{PREFIX}add_space_prefix") is not False
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    prefix = [{"type": "Prepend", "prepend": "▁"}] if add_prefix else []
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if add_prefix else []
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*prefix, spaces]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
    }
