"""Count the words of a corpus as the old tokenizer splits them, and tokenize words with the old tokenizer."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tokenizers import Regex, normalizers, pre_tokenizers

from lepmerge.errors import VocabularyError
from lepmerge.vocabulary.vocabulary import Vocabulary

SENTENCEPIECE_WORDS = r"▁?[\p{L}\p{M}]+|\p{N}|▁+|[^▁\p{L}\p{M}\p{N}]+"
"""Words for SentencePiece models. They have no pre-tokenizer, but none of their tokens extends beyond a word, a digit
or a run of other characters."""
SPACE = re.compile(r" (?<=\S )(?=\S)")
CHUNKS_AT_ONCE = 1 << 19
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
    for counts in _counted_chunks(parts) if _splits_before_spaces(vocabulary) else _counted(parts):
        for part, count in counts.items():
            for piece, _ in splitter.pre_tokenize_str(part):
                found[piece] += count
    return found


def _counted(texts: Iterable[str]) -> Iterator[Counter[str]]:
    return (Counter((text,)) for text in texts)


def _counted_chunks(texts: Iterable[str]) -> Iterator[Counter[str]]:
    """Yield the number of occurrences of the chunks that begin at spaces. Most chunks are frequent."""
    chunks: Counter[str] = Counter()
    for text in texts:
        first, *others = SPACE.split(text)
        chunks[first] += 1
        chunks.update([f" {chunk}" for chunk in others])
        if len(chunks) >= CHUNKS_AT_ONCE:
            yield chunks
            chunks = Counter()
    yield chunks


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
