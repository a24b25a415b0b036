"""The GGUF metadata that depends on the vocabulary: tokens, merges, scores, token types, special ids.

llama.cpp recognizes a pre-tokenizer by the name in `tokenizer.ggml.pre`, and this name is not changed. So the new
vocabulary must split text as the file's old one does. Those of `lepmerge tokenizer extend` and `optimize` do.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lepmerge.errors import VocabularyError
from lepmerge.models.gguf_file import FLOAT32, INT32, STRING, UINT32, Field, GgufFile, field_of
from lepmerge.vocabulary.vocabulary import Vocabulary

PREFIX = "tokenizer.ggml."
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Token types with llama.cpp's numbers."""
FAMILIES = {"gpt2": "byte_level", "llama": "sentencepiece"}
"""`tokenizer.ggml.model` → family of the vocabulary, which says how tokens write bytes. Other models are refused."""
UNREACHABLE_SCORE = -1e9
"""Score of a SentencePiece token that no merge produces. llama.cpp prefers high scores, so it never uses this one."""
COPIES = ("tokenizer.huggingface.json",)
"""Fields that repeat the old vocabulary. They are left out."""


@dataclass(frozen=True)
class VocabularyFields:
    """Changed fields of a GGUF file. A field that is None is removed. notes: for the user."""

    fields: Mapping[str, Field | None]
    notes: tuple[str, ...]


def check_old_vocabulary(file: GgufFile, vocabulary: Vocabulary, name: str) -> None:
    """Raise VocabularyError unless the file has every token of this vocabulary at the same id."""
    kind = file.value(f"{PREFIX}model")
    if kind not in FAMILIES or vocabulary.family != FAMILIES[kind]:
        raise VocabularyError(
            f"{file.path}: its tokenizer model is {kind!r}, the vocabulary of {name} is {vocabulary.family}: lepmerge "
            f"writes GGUF vocabularies of byte-level BPE (gpt2) and SentencePiece BPE (llama)"
        )
    tokens = file.value(f"{PREFIX}tokens")
    if not isinstance(tokens, list):
        raise VocabularyError(f"{file.path} has no tokens: name a GGUF file of the whole model as `body`")
    for token, id in vocabulary.all_ids.items():
        if id >= len(tokens) or _comparable(tokens[id]) != _comparable(token):
            found = repr(tokens[id]) if id < len(tokens) else "nothing"
            raise VocabularyError(
                f"{file.path}: token {id} is {found}, but {token!r} in {name}: the file is not made from this model"
            )


def vocabulary_fields(file: GgufFile, old: Vocabulary, new: Vocabulary, *, num_rows: int) -> VocabularyFields:
    """Return the fields of a file that change when its vocabulary `old` is replaced by `new`.

    num_rows: rows of the new tables. Ids without a token get the type UNUSED.

    Raises:
        VocabularyError: the new vocabulary splits text differently, or is not BPE.
    """
    _check_same_splitting(file, old, new)
    tokens = _tokens(new, num_rows)
    fields: dict[str, Field | None] = {
        f"{PREFIX}tokens": field_of(STRING, tokens),
        f"{PREFIX}token_type": field_of(INT32, _types(file, new, tokens)),
    }
    if f"{PREFIX}merges" in file.fields:
        fields[f"{PREFIX}merges"] = field_of(STRING, [f"{left} {right}" for left, right in merges_of(new)])
    if f"{PREFIX}scores" in file.fields:
        fields[f"{PREFIX}scores"] = field_of(FLOAT32, _scores(file, old, new, num_rows))
    ids, notes = _special_ids(file, old, new)
    fields |= ids
    size = f"{file.architecture}.vocab_size"
    if size in file.fields:
        fields[size] = field_of(UINT32, num_rows)
    fields |= {key: None for key in COPIES if key in file.fields}
    return VocabularyFields(fields, tuple(notes))


def merges_of(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Return the merges of a BPE vocabulary. tokenizer.json writes them as "left right" or as [left, right]."""
    merges = vocabulary.spec["model"].get("merges") or []
    pairs = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in merges)
    return [(left, right) for left, right in pairs]


def _comparable(token: str) -> str:
    """Return a token in a form that is equal in both formats: GGUF writes ▁ in added tokens as a space."""
    return token.replace("▁", " ")


def _check_same_splitting(file: GgufFile, old: Vocabulary, new: Vocabulary) -> None:
    if new.spec["model"]["type"] != "BPE":
        raise VocabularyError(f"{file.path}: the new vocabulary is {new.spec['model']['type']}; GGUF output needs BPE")
    for part in ("normalizer", "pre_tokenizer"):
        if old.spec.get(part) != new.spec.get(part):
            raise VocabularyError(
                f"{file.path}: the new vocabulary has another {part.replace('_', '-')} than the file's own, and "
                f"llama.cpp knows it only by name: use a vocabulary of `lepmerge tokenizer extend` or `optimize`"
            )


def _tokens(vocabulary: Vocabulary, num_rows: int) -> list[str]:
    tokens = [f"[PAD{id}]" for id in range(num_rows)]
    for token, id in vocabulary.ordinary.items():
        tokens[id] = token
    for token in vocabulary.added.values():
        tokens[token.id] = token.content if token.special else token.content.replace("▁", " ")
    return tokens


def _types(file: GgufFile, vocabulary: Vocabulary, tokens: list[str]) -> list[int]:
    """Return the type of every token. Tokens that the file already has keep their type."""
    before = dict(zip(file.value(f"{PREFIX}tokens"), map(int, file.value(f"{PREFIX}token_type")), strict=True))
    types = [UNUSED] * len(tokens)
    for token, id in vocabulary.ordinary.items():
        types[id] = before.get(token, BYTE if vocabulary.is_byte_token(token) else NORMAL)
    for token in vocabulary.added.values():
        types[token.id] = before.get(tokens[token.id], CONTROL if token.special else USER_DEFINED)
    return types


def _scores(file: GgufFile, old: Vocabulary, new: Vocabulary, num_rows: int) -> list[float]:
    """Return the score of every token: the negative rank of the first merge that produces it.

    Old tokens that no merge produces (bytes, single characters, added tokens) keep their score from the file.
    """
    before = file.value(f"{PREFIX}scores")
    old_id = {id: other for other, id in old.ids_in(new).items()}
    rank: dict[str, int] = {}
    for place, (left, right) in enumerate(merges_of(new)):
        rank.setdefault(left + right, place)
    scores = [UNREACHABLE_SCORE] * num_rows
    for token, id in new.all_ids.items():
        if token in rank:
            scores[id] = -float(rank[token])
        elif id in old_id:
            scores[id] = float(before[old_id[id]])
        elif len(token) == 1:
            scores[id] = -float(len(rank))
    return scores


def _special_ids(file: GgufFile, old: Vocabulary, new: Vocabulary) -> tuple[dict[str, Field | None], list[str]]:
    """Return the fields of special ids with their new ids, matched by content, and notes.

    A field is None if the new vocabulary lacks its token.
    """
    ids_in_new = old.ids_in(new)
    fields: dict[str, Field | None] = {}
    notes = []
    for key, field in file.fields.items():
        if not key.startswith(PREFIX) or not key.endswith("_token_id"):
            continue
        new_id = ids_in_new.get(int(field.value))
        fields[key] = None if new_id is None else field_of(UINT32, new_id)
        if new_id is None:
            notes.append(f"{key} was removed: the new vocabulary lacks its token {_token_at(file, int(field.value))!r}")
    return fields, notes


def _token_at(file: GgufFile, id: int) -> Any:
    tokens = file.value(f"{PREFIX}tokens")
    return tokens[id] if id < len(tokens) else id
