"""Metrics of tokenizers on texts: the paper's symbols per token, and others that help to judge a vocabulary."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from lepmerge.tokenization.gates import check_round_trip
from lepmerge.vocabulary.vocabulary import Vocabulary

FIGURES = {
    "symbols_per_token": "characters by tokens (the paper's figure)",
    "tokens_per_word": "tokens by words between white space",
    "bytes_per_token": "bytes of UTF-8 by tokens",
    "split_characters": "share of tokens that hold a part of a character",
    "new_tokens_share": "share of the text's bytes in tokens that the first tokenizer lacks",
    "unreachable": "tokens whose own bytes fall into others, so that text never has them",
    "unused_tokens": "share of the vocabulary that the text does not use",
    "exact_texts": "share of texts that come back exactly",
    "speed_up": "tokens of the first tokenizer by tokens of this one: how much faster a text is written",
}
SHARES = {"split_characters", "new_tokens_share", "unused_tokens", "exact_texts"}
"""Metrics that are fractions from 0 to 1. They are shown as percentages."""


def measure(vocabulary: Vocabulary, texts: Sequence[str], *, first: Vocabulary | None = None) -> dict[str, Any]:
    """Return the metrics of a tokenizer on some texts. first: the tokenizer that it is compared with."""
    used = _used(vocabulary, texts)
    num_tokens = max(1, used.total())
    bytes_of = {id: vocabulary.text_bytes_of.get(id, b"") for id in used}
    num_bytes = sum(len(text.encode()) for text in texts)
    figures: dict[str, Any] = {
        "vocabulary": vocabulary.size,
        "tokens": used.total(),
        "symbols_per_token": sum(map(len, texts)) / num_tokens,
        "tokens_per_word": used.total() / max(1, sum(len(text.split()) for text in texts)),
        "bytes_per_token": num_bytes / num_tokens,
        "split_characters": sum(count for id, count in used.items() if not _whole(bytes_of[id])) / num_tokens,
        "unreachable": num_lost_in(vocabulary),
        "unused_tokens": 1 - len(used) / vocabulary.size,
        "exact_texts": _exact(vocabulary, texts),
    }
    if first is not None:
        new = {id for id in used if first.id_of_bytes(bytes_of[id]) is None}
        in_new = sum(len(bytes_of[id]) * used[id] for id in new)
        figures["new_tokens_share"] = in_new / max(1, num_bytes)
        figures["speed_up"] = _used(first, texts).total() / num_tokens
    return figures


def differing_texts(first: Vocabulary, second: Vocabulary, texts: Sequence[str]) -> list[int]:
    """Return the positions of the texts that two tokenizers split differently, judged by the bytes of the tokens."""
    encoded = [v.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False) for v in (first, second)]
    found = []
    for place, (a, b) in enumerate(zip(*encoded, strict=True)):
        pieces = ([v.text_bytes_of.get(id) for id in e.ids] for v, e in ((first, a), (second, b)))
        if next(pieces) != next(pieces):
            found.append(place)
    return found


def num_lost_in(vocabulary: Vocabulary) -> int:
    """Count the tokens of whole characters whose own bytes are tokenized differently; byte-fallback tokens excluded."""
    ids = [id for id, data in vocabulary.bytes_of.items() if data and _whole(data)]
    ids = [id for id in ids if not vocabulary.is_byte_token(vocabulary.token_of[id])]
    encoded = vocabulary.encode([vocabulary.bytes_of[id] for id in ids])
    return sum(found != [id] for id, found in zip(ids, encoded, strict=True))


def _used(vocabulary: Vocabulary, texts: Sequence[str]) -> Counter[int]:
    used: Counter[int] = Counter()
    for encoding in vocabulary.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False):
        used.update(encoding.ids)
    return used


def _whole(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _exact(vocabulary: Vocabulary, texts: Sequence[str]) -> float:
    return check_round_trip(vocabulary, texts, old=vocabulary)["exact"] / max(1, len(texts))
