"""Make a new tokenizer folder from a corpus and an old tokenizer: the steps of each command, with their checks."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lepmerge.corpus import texts
from lepmerge.errors import VocabularyError
from lepmerge.models.references import resolve
from lepmerge.output.carried_files import check_tokenizer
from lepmerge.progress import Progress
from lepmerge.text_files import Counts
from lepmerge.tokenization.extend import extended_spec, learn
from lepmerge.tokenization.gates import (
    check_added,
    check_digits,
    check_extension,
    check_reachable,
    check_round_trips,
    num_lost,
)
from lepmerge.tokenization.optimize import shrunk_spec, token_counts
from lepmerge.tokenization.report import differing_texts, measure, num_lost_in
from lepmerge.tokenization.save import check_free, save_tokenizer
from lepmerge.tokenization.script import allowed_tokens
from lepmerge.tokenization.train import BYTE_TOKENS, train_bpe, train_unigram, unigram_spec
from lepmerge.tokenization.words import count_words
from lepmerge.vocabulary.vocabulary import Vocabulary

SAMPLE_TEXTS = 2000
SAMPLE_EVERY = 97
SMALLEST = [["<unk>", 0.0], *([token, -9.0] for token in BYTE_TOKENS), ["▁", -1.0]]
"""The smallest Unigram that can spell every text. It is checked before the training, which may take long, to see
whether transformers will load the result."""


def extend_tokenizer(
    model: str,
    corpus: Sequence[str],
    output: Path,
    *,
    num_tokens: int | None = None,
    vocab_size: int | None = None,
    scripts: Sequence[str] = (),
    only_from: str | None = None,
    layout: str = "after",
    column: str = "text",
    split: str | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write the tokenizer of `model` with new tokens learned from the corpus.

    Exactly one of num_tokens and vocab_size is given. only_from: a tokenizer; only tokens that it contains are added
    (the paper's Extension). layout: `after` puts new ids after the last used id, so that no old id moves; `before` puts
    them before the added tokens at the end. Return the contents of lepmerge_tokenizer.json.

    Raises:
        LepmergeError: the inputs are unusable or a check failed; nothing is written.
    """
    check_free(output)
    folder = resolve(model).folder
    old = Vocabulary.in_folder(folder)
    check_tokenizer(old, Vocabulary(old.spec))
    num_tokens = num_tokens if num_tokens is not None else (vocab_size or 0) - old.size
    if num_tokens < 1:
        raise VocabularyError(f"--vocab-size {vocab_size}: the tokenizer of {model} has {old.size} tokens already")
    among = None
    if only_from is not None:
        among = frozenset(Vocabulary.in_folder(resolve(only_from).folder).bytes_of.values())
    sample: list[str] = []
    counts = Counts()
    words = count_words(
        _sampled(texts(corpus, column=column, split=split, limit=limit, progress=progress, counts=counts), sample), old
    )
    option = "--add" if vocab_size is None else "--vocab-size"
    new = _extended(old, words, num_tokens, scripts, among, layout, option)
    report = {
        "operation": "extend",
        "model": model,
        "scripts": list(scripts),
        "only_from": only_from,
        "layout": layout,
        **_described(old, new, words, sample, counts),
        "gates": check_extension(old, new, sample, added_move=layout == "before"),
    }
    save_tokenizer(output, new, like=old, report=report)
    return report


def optimize_tokenizer(
    model: str,
    corpus: Sequence[str],
    output: Path,
    *,
    keep: float,
    vocab_size: int,
    scripts: Sequence[str] = (),
    column: str = "text",
    split: str | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Shrink the tokenizer of `model` to the tokens that the corpus uses most, then extend it to vocab_size.

    keep: fraction of the old tokens that are kept. The file id_map.json in the output maps old id → new id. Return the
    contents of lepmerge_tokenizer.json.

    Raises:
        LepmergeError: the inputs are unusable or a check failed; nothing is written.
    """
    check_free(output)
    folder = resolve(model).folder
    old = Vocabulary.in_folder(folder)
    check_tokenizer(old, Vocabulary(old.spec))
    sample: list[str] = []
    counts = Counts()
    words = count_words(
        _sampled(texts(corpus, column=column, split=split, limit=limit, progress=progress, counts=counts), sample), old
    )
    num_kept = round(keep * len(old.ordinary))
    spec, id_map = shrunk_spec(old, token_counts(words.items(), old), num_kept=num_kept)
    small = Vocabulary(spec)
    if vocab_size < small.size:
        raise VocabularyError(f"--vocab-size {vocab_size} is less than the {small.size} tokens that --keep leaves")
    new = small
    if vocab_size > small.size:
        new = _extended(small, words, vocab_size - small.size, scripts, option="--vocab-size")
    check_added(old, new)
    report = {
        "operation": "optimize",
        "model": model,
        "scripts": list(scripts),
        "kept": len(id_map),
        **_described(old, new, words, sample, counts),
        "gates": {
            "new_tokens": len(new.all_ids.keys() - old.all_ids.keys()),
            "unreachable": check_reachable(new, range(small.size, new.size)),
            "unreachable_kept": num_lost(old, new, id_map),
            "round_trip": check_round_trips(new, sample, old=old),
            "digits": check_digits(old, new),
        },
    }
    files = {"id_map.json": {str(old_id): new_id for old_id, new_id in sorted(id_map.items())}}
    save_tokenizer(output, new, like=old, report=report, files=files)
    return report


def train_tokenizer(
    kind: str,
    corpus: Sequence[str],
    output: Path,
    *,
    like: str,
    vocab_size: int,
    column: str = "text",
    split: str | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train a new tokenizer and write it with the special tokens and chat template of the model `like`.

    kind: bpe or unigram. Return the contents of lepmerge_tokenizer.json.

    Raises:
        LepmergeError: the inputs are unusable or a check failed; nothing is written.
    """
    check_free(output)
    folder = resolve(like).folder
    old = Vocabulary.in_folder(folder)
    check_tokenizer(old, Vocabulary(old.spec if kind == "bpe" else unigram_spec(SMALLEST, like=old)))
    sample: list[str] = []
    counts = Counts()
    stream = _sampled(texts(corpus, column=column, split=split, limit=limit, progress=progress, counts=counts), sample)
    train = {"bpe": train_bpe, "unigram": train_unigram}[kind]
    new = Vocabulary(train(stream, like=old, vocab_size=vocab_size))
    check_added(old, new)
    report = {
        "operation": "train",
        "kind": kind,
        "like": like,
        **_described(old, new, None, sample, counts),
        "gates": {
            "new_tokens": len(new.all_ids.keys() - old.all_ids.keys()),
            "unreachable": num_lost_in(new),
            "round_trip": check_round_trips(new, sample, old=old if kind == "bpe" else None),
        },
    }
    save_tokenizer(output, new, like=old, report=report)
    return report


def report_on(
    tokenizers: Sequence[str], files: Sequence[str], *, column: str = "text", limit: int | None = None
) -> dict[str, dict[str, Any]]:
    """Return text file → tokenizer → metrics (report.FIGURES). Each tokenizer is compared with the first one."""
    vocabularies = {name: Vocabulary.in_folder(resolve(name).folder) for name in tokenizers}
    first = next(iter(vocabularies.values()))
    found: dict[str, dict[str, Any]] = {}
    for file in files:
        counts = Counts()
        stream = list(texts([file], column=column, limit=limit, counts=counts))
        found[file] = {}
        for name, vocabulary in vocabularies.items():
            figures = measure(vocabulary, stream, first=None if vocabulary is first else first)
            figures["corpus"] = _corpus(counts)
            if vocabulary is not first:
                places = differing_texts(first, vocabulary, stream)
                examples = [stream[place][:80] for place in places[:3]]
                figures["differing"] = {"texts": len(places), "of": len(stream), "examples": examples}
            found[file][name] = figures
    return found


def _extended(
    old: Vocabulary,
    words: Counter[str],
    num_tokens: int,
    scripts: Sequence[str],
    among: frozenset[bytes] | None = None,
    layout: str = "after",
    option: str = "--add",
) -> Vocabulary:
    allowed = allowed_tokens(scripts, among=among)
    extension = learn(words.items(), old, num_tokens=num_tokens, allowed=allowed)
    if len(extension.tokens) < num_tokens:
        raise VocabularyError(_too_few(len(extension.tokens), num_tokens, words, scripts, option))
    return Vocabulary(extended_spec(old, extension, layout=layout))


def _described(
    old: Vocabulary, new: Vocabulary, words: Counter[str] | None, sample: Sequence[str], counts: Counts
) -> dict[str, Any]:
    counted = {} if words is None else {"words": {"different": len(words), "in_all": words.total()}}
    symbols = {name: measure(v, sample)["symbols_per_token"] for name, v in (("old", old), ("new", new))}
    return {"corpus": _corpus(counts), "old_size": old.size, "size": new.size, **counted, "symbols_per_token": symbols}


def _corpus(counts: Counts) -> dict[str, Any]:
    return {"documents": counts.documents, "texts": counts.texts, "skipped": dict(sorted(counts.skipped.items()))}


def _sampled(stream: Iterable[str], sample: list[str]) -> Iterator[str]:
    """Yield the texts, and collect every 97th in `sample` (at most 2000) for the checks after the training."""
    for number, text in enumerate(stream):
        if number % SAMPLE_EVERY == 0 and len(sample) < SAMPLE_TEXTS:
            sample.append(text)
        yield text


def _too_few(found: int, wanted: int, words: Counter[str], scripts: Sequence[str], option: str) -> str:
    of = f" of the script{'s' if len(scripts) > 1 else ''} {', '.join(scripts)}" if scripts else ""
    return (
        f"the corpus gives only {found} new tokens{of} ({len(words)} different words), {wanted} were asked for: "
        f"give more text, or a smaller {option}"
    )
