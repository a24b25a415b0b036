"""Count the words of a corpus as the old tokenizer splits them, and tokenize words with the old tokenizer."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

from lepmerge.errors import VocabularyError
from lepmerge.vocabulary.vocabulary import Vocabulary

SENTENCEPIECE_WORDS = r"▁?[\p{L}\p{M}]+|\p{N}|▁+|[^▁\p{L}\p{M}\p{N}]+"
"""Words for SentencePiece models. They have no pre-tokenizer, but none of their tokens extends beyond a word, a digit
or a run of other characters."""
WORDS_AT_ONCE = 16384


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
    found: Counter[str] = Counter()
    for text in texts:
        found.update([piece for piece, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))])
    return found


def old_tokens(words: Iterable[str], vocabulary: Vocabulary) -> Iterator[list[int]]:
    """Yield the old ids of each word from the bare model, without normalizer, pre-tokenizer and post-processor."""
    bare = Tokenizer(vocabulary.tokenizer.model)
    words = iter(words)
    while some := list(islice(words, WORDS_AT_ONCE)):
        for encoding in bare.encode_batch_fast(some, add_special_tokens=False):
            yield encoding.ids
