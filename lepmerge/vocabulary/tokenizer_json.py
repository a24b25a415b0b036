"""A parsed tokenizer.json: how it writes bytes, how it tokenizes the middle of a text, tokens without rows."""

import copy
from collections.abc import Mapping
from typing import Any

from lepmerge.errors import VocabularyError

_PARTS = ("normalizer", "pre_tokenizer", "decoder")
_LISTS = ("normalizers", "pretokenizers", "decoders", "processors")


def family_of(spec: Mapping[str, Any]) -> str:
    """Return how token strings write bytes: byte_level, sentencepiece, wordpiece or plain."""
    items = [item for part in _PARTS for item in _flattened(spec.get(part))]
    names = {item.get("type") for item in items}
    if "ByteLevel" in names:
        return "byte_level"
    if spec["model"]["type"] == "WordPiece":
        return "wordpiece"
    spaces = (item for item in items if item.get("type") == "Replace")
    if "Metaspace" in names or any("▁" in (item.get("content"), _pattern(item)) for item in spaces):
        return "sentencepiece"
    return "plain"


def of_the_middle(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tokenizer.json changed so that it treats every text as the middle of a longer one.

    It adds no prefix space, strips nothing, and knows no added tokens.
    """
    middle = {**spec, "added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    middle["normalizer"] = _without(spec.get("normalizer"), {"Prepend", "Strip"})
    middle["pre_tokenizer"] = _without(spec.get("pre_tokenizer"), set())
    for item in _flattened(middle["pre_tokenizer"]):
        if "prepend_scheme" in item:
            item["prepend_scheme"] = "never"
        if "add_prefix_space" in item:
            item["add_prefix_space"] = False
    return middle


def without_tokens_beyond(spec: dict[str, Any], num_rows: int, *, where: str) -> dict[str, Any]:
    """Return the tokenizer.json without the tokens whose ids are num_rows or higher.

    Gemma-3-1B and CodeLlama-Python are published with added tokens that have no row. The models fail on texts that
    contain them.

    Raises:
        VocabularyError: some of these tokens are ordinary ones, so any text may contain them.
    """
    added = spec.get("added_tokens") or []
    beyond = {entry["content"] for entry in added if entry["id"] >= num_rows}
    vocab, model = spec["model"]["vocab"], spec["model"]
    ids = vocab if isinstance(vocab, dict) else {token: id for id, (token, _) in enumerate(vocab)}
    ordinary = {token: id for token, id in ids.items() if id >= num_rows and token not in beyond}
    reached = {token: id for token, id in ordinary.items() if _is_reached(token, model)}
    if reached:
        token, id = min(reached.items(), key=lambda item: item[1])
        raise VocabularyError(
            f"{where}: the tokenizer has {len(reached)} tokens beyond the {num_rows} rows of the tables, the first is "
            f"{token!r} with id {id}: this is not the tokenizer of the model. Take the right one, or give the tokens "
            f"rows with model.resize_token_embeddings() and save the model again"
        )
    if not beyond and not ordinary:
        return spec
    if isinstance(vocab, dict):
        model = {**model, "vocab": {token: id for token, id in vocab.items() if id < num_rows}}
    else:
        model = {**model, "vocab": vocab[:num_rows]}
    return {**spec, "model": model, "added_tokens": [entry for entry in added if entry["id"] < num_rows]}


def check_post_processor(spec: Mapping[str, Any], *, where: str) -> None:
    """Raise VocabularyError if the post-processor puts a token around texts that the tokenizer or the tables lack."""
    used: dict[Any, str] = {}
    try:
        for item in _flattened(spec.get("post_processor")):
            pieces = [piece["SpecialToken"]["id"] for piece in item.get("single") or [] if "SpecialToken" in piece]
            used |= {id: name for name in pieces for id in item["special_tokens"][name]["ids"]}
            used |= {item[key][1]: item[key][0] for key in ("sep", "cls") if key in item}
    except (TypeError, KeyError, IndexError) as error:
        raise VocabularyError(f"{where}: post_processor in tokenizer.json is not valid; download it again") from error
    if not used:
        return
    vocab = spec["model"]["vocab"]
    known = {*(vocab.values() if isinstance(vocab, dict) else range(len(vocab)))}
    known |= {entry["id"] for entry in spec.get("added_tokens") or []}
    for id, token in used.items():
        if id not in known:
            raise VocabularyError(
                f"{where}: post_processor in tokenizer.json puts {token!r} (id {id}) around texts, but the tokenizer "
                f"or the model has no such token: correct it"
            )


def _is_reached(token: str, model: Mapping[str, Any]) -> bool:
    """Return whether a text can contain an ordinary token. In a BPE, only characters and results of merges occur."""
    if model["type"] != "BPE" or model.get("ignore_merges") or len(token) == 1:
        return True
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
    return any(len(left) + len(right) == len(token) and left + right == token for left, right in pairs)


def _flattened(item: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return a part of a tokenizer.json and, if it is a Sequence, its members at every depth."""
    if item is None:
        return []
    members = [member for key in _LISTS for member in item.get(key, ())]
    return [item, *(inner for member in members for inner in _flattened(member))]


def _without(item: dict[str, Any] | None, types: set[str]) -> dict[str, Any] | None:
    """Return a copy of a part of a tokenizer.json without members of these types."""
    if item is None or item.get("type") in types:
        return None
    item = copy.deepcopy(item)
    for key in _LISTS:
        if key in item:
            item[key] = [kept for member in item[key] if (kept := _without(member, types)) is not None]
    return item


def _pattern(item: Mapping[str, Any]) -> str | None:
    pattern = item.get("pattern")
    return pattern.get("String") if isinstance(pattern, dict) else pattern
