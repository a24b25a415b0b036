"""Metrics of tokenizers on texts: the paper's symbols per token, and others that help to judge a vocabulary."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from lepmerge.corpus import texts
from lepmerge.models.references import resolve
from lepmerge.text_files import Counts
from lepmerge.tokenization.checks import check_round_trip, is_text
from lepmerge.vocabulary.vocabulary import Vocabulary

PERCENTAGES = {"split_characters", "new_tokens_fraction", "unused_tokens", "exact_texts"}
"""Metrics that are fractions from 0 to 1. They are shown as percentages."""


def compare_tokenizers(
    tokenizers: Sequence[str], files: Sequence[str], *, column: str = "text", limit: int | None = None
) -> dict[str, dict[str, Any]]:
    """Return text file → tokenizer → metrics. Each tokenizer is compared with the first one."""
    vocabularies = {name: Vocabulary.in_folder(resolve(name).folder) for name in tokenizers}
    first = next(iter(vocabularies.values()))
    found: dict[str, dict[str, Any]] = {}
    for file in files:
        counts = Counts()
        read = list(texts([file], column=column, limit=limit, counts=counts))
        found[file] = {}
        for name, vocabulary in vocabularies.items():
            metrics = measure(vocabulary, read, first=None if vocabulary is first else first)
            metrics["corpus"] = counts.plain()
            if vocabulary is not first:
                places = differing_texts(first, vocabulary, read)
                examples = [read[place][:80] for place in places[:3]]
                metrics["differing"] = {"texts": len(places), "of": len(read), "examples": examples}
            found[file][name] = metrics
    return found


def measure(vocabulary: Vocabulary, texts: Sequence[str], *, first: Vocabulary | None = None) -> dict[str, Any]:
    """Return the metrics of a tokenizer on some texts.

    symbols_per_token: characters divided by tokens, as in the paper. split_characters: fraction of the tokens that are
    parts of a character. unreachable: number of tokens whose own bytes are tokenized into others, so that no text
    contains them. unused_tokens: fraction of the vocabulary that the texts do not use. exact_texts: fraction of the
    texts that decode to themselves. With `first`, a tokenizer to compare with: new_tokens_fraction, the fraction of the
    bytes in tokens that `first` lacks; speed_up, tokens of `first` divided by tokens of this tokenizer.
    """
    used = _used(vocabulary, texts)
    num_tokens = max(1, used.total())
    bytes_of = {id: vocabulary.text_bytes_of.get(id, b"") for id in used}
    num_bytes = sum(len(text.encode()) for text in texts)
    metrics: dict[str, Any] = {
        "vocabulary": vocabulary.size,
        "tokens": used.total(),
        "symbols_per_token": symbols_per_token(vocabulary, texts, used),
        "tokens_per_word": used.total() / max(1, sum(len(text.split()) for text in texts)),
        "bytes_per_token": num_bytes / num_tokens,
        "split_characters": sum(count for id, count in used.items() if not is_text(bytes_of[id])) / num_tokens,
        "unreachable": num_lost_in(vocabulary),
        "unused_tokens": 1 - len(used) / vocabulary.size,
        "exact_texts": _exact(vocabulary, texts),
    }
    if first is not None:
        new = {id for id in used if first.id_of_bytes(bytes_of[id]) is None}
        in_new = sum(len(bytes_of[id]) * used[id] for id in new)
        metrics["new_tokens_fraction"] = in_new / max(1, num_bytes)
        metrics["speed_up"] = _used(first, texts).total() / num_tokens
    return metrics


def symbols_per_token(vocabulary: Vocabulary, texts: Sequence[str], used: Counter[int] | None = None) -> float:
    """Return characters divided by tokens. used: id → number of uses in the texts, if it is known."""
    used = _used(vocabulary, texts) if used is None else used
    return sum(map(len, texts)) / max(1, used.total())


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
    ids = [id for id, data in vocabulary.bytes_of.items() if data and is_text(data)]
    ids = [id for id in ids if not vocabulary.is_byte_token(vocabulary.token_of[id])]
    encoded = vocabulary.encode([vocabulary.bytes_of[id] for id in ids])
    return sum(found != [id] for id, found in zip(ids, encoded, strict=True))


def _used(vocabulary: Vocabulary, texts: Sequence[str]) -> Counter[int]:
    used: Counter[int] = Counter()
    for encoding in vocabulary.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False):
        used.update(encoding.ids)
    return used


def _exact(vocabulary: Vocabulary, texts: Sequence[str]) -> float:
    return check_round_trip(vocabulary, texts, old=vocabulary)["exact"] / max(1, len(texts))
