"""Validate a tokenizer.json: every key that lepmerge reads must have a value of the right type."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lepmerge.errors import VocabularyError
from lepmerge.json_text import read_json_file
from lepmerge.vocabulary.token_bytes import BYTE_TOKENS, CHARACTER_OF

MODELS = ("BPE", "Unigram", "WordPiece", "WordLevel")
PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
MEMBERS = ("normalizers", "pretokenizers", "decoders", "processors")
FLAGS = ("special", "lstrip", "rstrip", "normalized", "single_word")


def read_spec(path: Path) -> dict[str, Any]:
    """Return a parsed and validated tokenizer.json.

    Raises:
        VocabularyError: a key is missing or has a value of the wrong type; the error names the file and the first one.
    """
    spec = read_json_file(path, VocabularyError)
    check_spec(spec, str(path))
    return spec


def check_spec(spec: Any, where: str) -> None:
    """Raise VocabularyError unless a parsed tokenizer.json has every key that lepmerge reads, with the right types."""
    fault = _fault_of(spec)
    if fault is not None:
        raise VocabularyError(f"{where} is not a valid tokenizer.json: {fault}; download it or save it again")


def _fault_of(spec: Any) -> str | None:
    """Return what is wrong with a parsed tokenizer.json, or None if it is valid."""
    if not isinstance(spec, dict) or not isinstance(spec.get("model"), dict):
        return "it should be an object with a `model`"
    if spec["model"].get("type") not in MODELS:
        return f"model.type {spec['model'].get('type')!r} is not one of {', '.join(MODELS)}"
    model = spec["model"]
    fault = _fault_of_vocab(model) or _fault_of_unknown(model) or _fault_of_merges(model) or _fault_of_added(spec)
    return fault or next((fault for part in PARTS if (fault := _fault_of_part(spec.get(part), part))), None)


def _fault_of_vocab(model: Mapping[str, Any]) -> str | None:
    vocab = model.get("vocab")
    for key, kind in (("byte_fallback", bool), ("continuing_subword_prefix", str), ("unk_token", str)):
        if not isinstance(model.get(key), kind | None):
            return f"model.{key} should be a {kind.__name__}, not {model[key]!r}"
    if model["type"] == "WordPiece" and not isinstance(model.get("continuing_subword_prefix"), str):
        return "model.continuing_subword_prefix should be a text such as ##"
    if model["type"] == "Unigram":
        if not isinstance(vocab, list):
            return "model.vocab should be a list of [token, score]"
        if not vocab:
            return "model.vocab is empty"
        wrong = [item for item in vocab if not _is_pair(item, str, (int, float))]
        return f"model.vocab should hold [token, score], not {wrong[0]!r}" if wrong else None
    if not isinstance(vocab, dict):
        return "model.vocab should be an object of token: id"
    if not vocab:
        return "model.vocab is empty"
    wrong = next(((token, id) for token, id in vocab.items() if not _is_id(id)), None)
    return None if wrong is None else f"model.vocab: the id of {wrong[0]!r} should be a whole number, not {wrong[1]!r}"


def _fault_of_unknown(model: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the token for unknown text. Without a valid one, the library fails on such text."""
    if model["type"] == "BPE" and (model.get("unk_token") is None or _has_all_bytes(model)):
        return None
    if model["type"] == "Unigram":
        id = model.get("unk_id")
        is_place = isinstance(id, int) and _is_id(id) and id < len(model["vocab"])
        return None if is_place else f"model.unk_id {id!r} is not an index into model.vocab"
    token = model.get("unk_token")
    return None if token in model["vocab"] else f"model.unk_token {token!r} is not in model.vocab"


def _has_all_bytes(model: Mapping[str, Any]) -> bool:
    """Return whether a BPE model can express every byte, so that no text is unknown to it."""
    bytes_as_tokens = BYTE_TOKENS if model.get("byte_fallback") else CHARACTER_OF.values()
    return model["vocab"].keys() >= set(bytes_as_tokens)


def _fault_of_merges(model: Mapping[str, Any]) -> str | None:
    if model["type"] != "BPE":
        return None
    merges = model.get("merges")
    if not isinstance(merges, list):
        return "model.merges should be a list"
    prefix = model.get("continuing_subword_prefix") or ""
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not _is_pair(pair, str, str):
            return f"model.merges should hold pairs of tokens, not {merge!r}"
        if not (pair[0] in model["vocab"] and pair[1] in model["vocab"]):
            return f"model.merges: {merge!r} joins a token that model.vocab lacks"
        if not pair[1].startswith(prefix):
            return f"model.merges: the second part of {merge!r} lacks the prefix {prefix!r}"
    return None


def _fault_of_added(spec: Mapping[str, Any]) -> str | None:
    added = spec.get("added_tokens")
    if not isinstance(added, list | None):
        return "added_tokens should be a list"
    seen: set[str] = set()
    for place, entry in enumerate(added or []):
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str) or not _is_id(entry.get("id")):
            return f"added_tokens[{place}] should have an `id` and a `content`, not {entry!r}"
        wrong = next((key for key in FLAGS if not isinstance(entry.get(key, False), bool)), None)
        if wrong is not None:
            return f"added_tokens[{place}].{wrong} should be true or false, not {entry[wrong]!r}"
        if not entry["content"] or entry["content"] in seen:
            return f"added_tokens[{place}].content {entry['content']!r} is empty or occurs twice"
        seen.add(entry["content"])
    return None


def _fault_of_part(part: Any, where: str) -> str | None:
    """Return what is wrong with a normalizer, pre-tokenizer, post-processor or decoder, or with one of its members."""
    if part is None:
        return None
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        return f"{where} should be null or an object with a `type`"
    for key in MEMBERS:
        members = part.get(key, [])
        if not isinstance(members, list) or None in members:
            return f"{where}.{key} should be a list of objects"
        for place, member in enumerate(members):
            fault = _fault_of_part(member, f"{where}.{key}[{place}]")
            if fault is not None:
                return fault
    return None


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31


def _is_pair(value: Any, first: Any, second: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], first)
        and isinstance(value[1], second)
        and not isinstance(value[1], bool)
    )
