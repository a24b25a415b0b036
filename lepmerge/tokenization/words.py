"""Count the words of a corpus as the old tokenizer splits them, and tokenize words with the old tokenizer."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import repeat
from typing import Any

from tokenizers import Regex, normalizers, pre_tokenizers

from lepmerge.errors import VocabularyError
from lepmerge.vocabulary.vocabulary import Vocabulary

SENTENCEPIECE_WORDS = r"▁?[\p{L}\p{M}]+|\p{N}|▁+|[^▁\p{L}\p{M}\p{N}]+"
"""Words for SentencePiece models. They have no pre-tokenizer, but none of their tokens extends beyond a word, a digit
or a run of other characters."""
SPACE = re.compile(r" (?<=\S )(?=\S)")
CHUNKS_AT_ONCE = 1 << 19
CHUNKS_IN_STRING = 1000
_AFTER_NUMBERS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS_BEFORE_SPACES = tuple(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + numbers + _AFTER_NUMBERS
    for numbers in (r"\p{N}{1,3}", r"\p{N}")
)
"""Patterns of Llama 3 and Qwen 2. They, and GPT-2's, always begin a word at a space between two other characters."""


def count_words(texts: Iterable[str], vocabulary: Vocabulary) -> Counter[str]:
    """Return word → number of occurrences. Words are written as the tokenizer's model sees them (Ġпривет, ▁привет).

    Memory grows with the number of different words, not with the size of the corpus.
    """
    tokenizer = vocabulary.tokenizer
    normalizer = tokenizer.normalizer or normalizers.Sequence([])
    splitters = [tokenizer.pre_tokenizer] if tokenizer.pre_tokenizer is not None else []
    if vocabulary.family == "sentencepiece":
        splitters.append(pre_tokenizers.Split(Regex(SENTENCEPIECE_WORDS), "isolated"))
    if not splitters:
        raise VocabularyError(
            f"{vocabulary.folder}: the tokenizer does not split text into words, so words cannot be counted"
        )
    splitter = pre_tokenizers.Sequence(splitters)
    parts = map(normalizer.normalize_str, texts) if tokenizer.normalizer is not None else texts
    found: Counter[str] = Counter()
    for part, count in _chunks(parts) if _splits_before_spaces(vocabulary) else zip(parts, repeat(1)):
        for piece, _ in splitter.pre_tokenize_str(part):
            found[piece] += count
    return found


def _chunks(texts: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Yield strings that are split like the texts, each with its number of occurrences.

    A text is cut at the spaces between two other characters. Most of these chunks are frequent. Chunks that occur
    equally often are joined, since few long strings are split faster than many short ones.
    """
    firsts: Counter[str] = Counter()
    others: Counter[str] = Counter()  # without the space before them
    for text in texts:
        first, *later = SPACE.split(text)
        firsts[first] += 1
        others.update(later)
        if len(firsts) + len(others) >= CHUNKS_AT_ONCE:
            yield from _joined(firsts, others)
            firsts, others = Counter(), Counter()
    yield from _joined(firsts, others)


def _joined(firsts: Counter[str], others: Counter[str]) -> Iterator[tuple[str, int]]:
    yield from firsts.items()
    with_count: dict[int, list[str]] = defaultdict(list)
    for chunk, count in others.items():
        if chunk[-1].isspace():  # the end of a text: a space after it would not begin a word
            yield f" {chunk}", count
        else:
            with_count[count].append(chunk)
    for count, chunks in with_count.items():
        for start in range(0, len(chunks), CHUNKS_IN_STRING):
            yield " ".join(["", *chunks[start : start + CHUNKS_IN_STRING]]), count


def _splits_before_spaces(vocabulary: Vocabulary) -> bool:
    """Return whether the parts of a text between single spaces can be split alone, each with the space before it.

    True for the pre-tokenizers of GPT-2, SmolLM2, Llama 3 and Qwen, for example; False where this is not known.
    """
    spec = vocabulary.spec.get("pre_tokenizer") or {}
    members = spec["pretokenizers"] if spec.get("type") == "Sequence" else [spec]
    kinds = [_kind(member) for member in members]
    return "spaces" in kinds and "other" not in kinds


def _kind(part: Mapping[str, Any]) -> str:
    """Return "spaces" if a part of the pre-tokenizer splits at spaces, "local" if it does not depend on other words."""
    if part.get("type") == "Split":
        is_known = part["pattern"].get("Regex") in SPLITS_BEFORE_SPACES
        return "spaces" if is_known and part["behavior"] == "Isolated" and not part["invert"] else "other"
    if part.get("type") == "ByteLevel" and not part.get("add_prefix_space"):
        return "spaces" if part.get("use_regex", True) else "local"
    return "local" if part.get("type") == "Digits" else "other"


def old_tokens(words: Iterable[str], vocabulary: Vocabulary) -> Iterator[list[int]]:
    """Yield the old ids of each word from the bare model, without normalizer, pre-tokenizer and post-processor."""
    tokenize = vocabulary.tokenizer.model.tokenize
    return ([token.id for token in tokenize(word)] for word in words)
