"""A parsed tokenizer.json: how it writes bytes, and how it treats the middle of a text."""

import copy
from collections.abc import Mapping
from typing import Any

_PARTS = ("normalizer", "pre_tokenizer", "decoder")
_LISTS = ("normalizers", "pretokenizers", "decoders", "processors")


def family_of(spec: Mapping[str, Any]) -> str:
    """Return how bytes are written as token strings: byte_level, sentencepiece, wordpiece or plain."""
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
    """Return the tokenizer.json of the same tokenizer as it treats the middle of a text."""
    middle = {**spec, "added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    middle["normalizer"] = _without(spec.get("normalizer"), {"Prepend", "Strip"})
    middle["pre_tokenizer"] = _without(spec.get("pre_tokenizer"), set())
    for item in _flattened(middle["pre_tokenizer"]):
        if "prepend_scheme" in item:
            item["prepend_scheme"] = "never"
        if "add_prefix_space" in item:
            item["add_prefix_space"] = False
    return middle


def _flattened(item: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return the part of a tokenizer.json and, for a Sequence, its members at every depth."""
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
