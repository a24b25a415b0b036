"""The settings of a tokenizer: read the special tokens that they name, and write settings for another vocabulary.

Files name a token by its text or by an object with the key `content`. The list of additional special tokens occurs
under two keys (LISTS).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lepmerge.errors import VocabularyError
from lepmerge.json_text import read_json_file

GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""Tokenizer classes that use tokenizer.json unchanged."""
LISTS = ("additional_special_tokens", "extra_special_tokens")
SLOW_ONLY = ("auto_map", "sp_model_kwargs", "legacy", "spaces_between_special_tokens", "vocab_file", "tokenizer_file",
             "merges_file", "from_slow", "backend", "is_local", "local_files_only")  # fmt: skip
IN_TOKENIZER_JSON = ("add_prefix_space", "add_bos_token", "add_eos_token", "split_special_tokens", "fix_mistral_regex",
                     "model_specific_special_tokens")  # fmt: skip


def generic_config(config: Mapping[str, Any], names: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tokenizer_config.json for another tokenizer.json (`spec`) and the generic class.

    Model-specific classes replace the pre-tokenizer of a tokenizer.json with their own; the generic class does not.
    Tokens that the tokenizer.json lacks are not named, because transformers would add them to it.
    """
    kept = {
        key: value
        for key, value in config.items()
        if key not in (*SLOW_ONLY, *IN_TOKENIZER_JSON, *LISTS) and not key.endswith("_token")
    }
    entries = {entry["content"]: entry for entry in spec.get("added_tokens") or []}
    for key, value in names.items():
        present = [token for token in value if token in entries] if isinstance(value, list) else value
        if present and (isinstance(present, list) or present in entries):
            kept[key] = present
    decoder = {str(entry["id"]): {k: v for k, v in entry.items() if k != "id"} for entry in entries.values()}
    kept.setdefault("model_input_names", ["input_ids", "attention_mask"])  # without token types, which the models lack
    return {**kept, "added_tokens_decoder": decoder, "tokenizer_class": GENERIC[0]}


def names_in(config: Mapping[str, Any], special_tokens_map: Mapping[str, Any]) -> dict[str, Any]:
    """Return key → text of the special tokens that tokenizer_config.json and special_tokens_map.json name."""
    merged = {**special_tokens_map, **config}
    merged |= as_text(merged)
    names: dict[str, Any] = {
        key: value for key, value in merged.items() if key.endswith("_token") and isinstance(value, str)
    }
    extra = merged.get("extra_special_tokens") or merged.get("additional_special_tokens") or []
    if isinstance(extra, dict):
        names |= {key: value for key, value in extra.items() if isinstance(value, str)}
    elif extra:
        names["additional_special_tokens"] = extra
    return names


def names_of(loaded: Any) -> dict[str, Any]:
    """Return key → text of the special tokens that a loaded tokenizer names."""
    names: dict[str, Any] = {
        key: str(value) for key, value in loaded.special_tokens_map.items() if key not in LISTS and value is not None
    }
    extra = loaded.special_tokens_map.get(LISTS[0]) or getattr(loaded, LISTS[1], None) or []
    if isinstance(extra, list | tuple) and extra:
        names[LISTS[0]] = [str(token) for token in extra]
    return names


def as_text(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a tokenizer_config.json that hold tokens as objects, with each object replaced by text."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if key.endswith("_token") and _is_token(value):
            found[key] = value["content"]
        elif key in LISTS and isinstance(value, list) and any(_is_token(item) for item in value):
            found[key] = [item["content"] if _is_token(item) else item for item in value]
        elif key in LISTS and isinstance(value, dict) and any(_is_token(item) for item in value.values()):
            found[key] = {name: item["content"] if _is_token(item) else item for name, item in value.items()}
    return found


def _is_token(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("content"), str)


def read_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, or {} if the file does not exist."""
    value = read_json_file(path, VocabularyError) if path.exists() else {}
    if not isinstance(value, dict):
        raise VocabularyError(f"{path} should hold a JSON object, not a {type(value).__name__}")
    return value
