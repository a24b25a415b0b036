"""Corpus and old tokenizer → new tokenizer folder: the steps of each command, gates included."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lepmerge.errors import VocabularyError
from lepmerge.references import resolve
from lepmerge.tokenization.corpus import Progress, texts
from lepmerge.tokenization.extend import extended_spec, learn
from lepmerge.tokenization.gates import check_extension
from lepmerge.tokenization.save import check_free, save_tokenizer
from lepmerge.tokenization.script import allowed_tokens
from lepmerge.tokenization.words import count_words
from lepmerge.vocabulary import Vocabulary

SAMPLE_TEXTS = 2000
SAMPLE_EVERY = 97


def extend_tokenizer(
    model: str,
    corpus: Sequence[str],
    output: Path,
    *,
    num_tokens: int | None = None,
    vocab_size: int | None = None,
    scripts: Sequence[str] = (),
    only_from: str | None = None,
    column: str = "text",
    limit: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write the tokenizer of `model` with new tokens learned on the corpus; return what lepmerge_tokenizer.json holds.

    Exactly one of num_tokens and vocab_size is given. only_from names a tokenizer: only tokens that it has are added
    (the paper's Extension).

    Raises:
        LepmergeError: nothing is written then.
    """
    check_free(output)
    folder = resolve(model).folder
    old = Vocabulary.in_folder(folder)
    num_tokens = num_tokens if num_tokens is not None else (vocab_size or 0) - old.size
    if num_tokens < 1:
        raise VocabularyError(f"--vocab-size {vocab_size}: the tokenizer of {model} has {old.size} tokens already")
    among = None
    if only_from is not None:
        among = frozenset(Vocabulary.in_folder(resolve(only_from).folder).bytes_of.values())
    sample: list[str] = []
    words = count_words(_sampled(texts(corpus, column=column, limit=limit, progress=progress), sample), old)
    extension = learn(
        words.items(), old, num_tokens=num_tokens, allowed=allowed_tokens(scripts, among=among), progress=None
    )
    if len(extension.tokens) < num_tokens:
        raise VocabularyError(_too_few(len(extension.tokens), num_tokens, words, scripts))
    new = Vocabulary(extended_spec(old, extension))
    report = {
        "operation": "extend",
        "model": model,
        "old_size": old.size,
        "size": new.size,
        "scripts": list(scripts),
        "only_from": only_from,
        "words": {"different": len(words), "in_all": words.total()},
        "symbols_per_token": {name: symbols_per_token(v, sample) for name, v in (("old", old), ("new", new))},
        "gates": check_extension(old, new, sample),
    }
    save_tokenizer(output, new, like=folder, report=report)
    return report


def symbols_per_token(vocabulary: Vocabulary, sample: Sequence[str]) -> float:
    """Return characters by tokens, added tokens of the start and end of a text left out."""
    encoded = vocabulary.tokenizer.encode_batch_fast(list(sample), add_special_tokens=False)
    return sum(map(len, sample)) / max(1, sum(len(encoding.ids) for encoding in encoded))


def _sampled(stream: Iterable[str], sample: list[str]) -> Iterator[str]:
    """Yield the texts and keep some of them: the first ones of every hundred or so."""
    for number, text in enumerate(stream):
        if number % SAMPLE_EVERY == 0 and len(sample) < SAMPLE_TEXTS:
            sample.append(text)
        yield text


def _too_few(found: int, wanted: int, words: Counter[str], scripts: Sequence[str]) -> str:
    of = f" of the script{'s' if len(scripts) > 1 else ''} {', '.join(scripts)}" if scripts else ""
    return (
        f"the corpus gives only {found} new tokens{of} ({len(words)} different words), {wanted} were asked for: "
        f"give more text, or a smaller --add"
    )
