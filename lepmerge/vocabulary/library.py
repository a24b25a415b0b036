"""A parsed tokenizer.json as the tokenizers library takes it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from lepmerge.errors import VocabularyError


def as_the_library_reads(spec: dict[str, Any], folder: Path, notes: list[str]) -> dict[str, Any]:
    """Return a tokenizer.json as the tokenizers library takes it, and add a note on each difference.

    The library numbers the added tokens that the model lacks by count, whatever their ids in the file. Merges that are
    dropped at random are a setting for training, with which no two conversions are equal, so they are not dropped.
    transformers sets truncation and padding again for every text.
    """
    spec = {**spec, "truncation": None, "padding": None}
    if spec["model"].get("dropout"):
        notes.append(f"{folder}: tokenizer.json drops merges at random (model.dropout); lepmerge leaves this out")
        spec["model"] = {**spec["model"], "dropout": None}
    added = spec.get("added_tokens") or []
    if [entry["id"] for entry in added] == _expected_ids(spec):
        return spec
    read = json.loads(library_tokenizer(spec, folder).to_str())["added_tokens"]
    id_of = {entry["content"]: entry["id"] for entry in read}
    for entry in added:
        if entry["content"] not in id_of:
            raise VocabularyError(
                f"{folder / 'tokenizer.json'}: the added token {entry['content']!r} has the id of another token, "
                f"{entry['id']}, so the tokenizers library does not read it: correct it"
            )
        if entry["id"] != id_of[entry["content"]]:
            notes.append(
                f"{folder}: tokenizer.json gives {entry['content']!r} the id {entry['id']}, but the tokenizers library "
                f"reads it as {id_of[entry['content']]}, and so does lepmerge"
            )
    return {**spec, "added_tokens": read}


def _expected_ids(spec: Mapping[str, Any]) -> list[int]:
    """Return the ids that the library certainly gives to the added tokens: the model's, or the next by count."""
    vocab = spec["model"]["vocab"]
    ids = vocab if isinstance(vocab, dict) else {token: id for id, (token, _) in enumerate(vocab)}
    given: list[int] = []
    following = len(ids)
    for entry in spec.get("added_tokens") or []:
        given.append(ids.get(entry["content"], following))
        following = max(following, given[-1] + 1)
    return given


def library_tokenizer(spec: Mapping[str, Any], where: Path | str) -> Tokenizer:
    """Return the library's tokenizer of a parsed tokenizer.json. Raises VocabularyError if the library refuses it."""
    try:
        return Tokenizer.from_str(json.dumps(spec, ensure_ascii=False))
    except Exception as error:  # the library raises Exception itself, and no class of its own
        raise VocabularyError(f"{where}: the tokenizers library refuses its tokenizer.json: {error}") from error
