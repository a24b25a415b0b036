"""Make a new tokenizer folder from a corpus and an old tokenizer: extend it, shrink it, or train another one."""

import gc
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from lepmerge.corpus import Corpus
from lepmerge.errors import VocabularyError
from lepmerge.json_text import to_json
from lepmerge.models.configs import read_json
from lepmerge.models.references import resolve
from lepmerge.output.run import Run, digest, identities
from lepmerge.output.tokenizer_files import check_tokenizer, tokenizer_config, tokenizer_files
from lepmerge.progress import Progress, no_progress
from lepmerge.text_files import Counts
from lepmerge.tokenization.checks import (
    check_added,
    check_digits,
    check_extension,
    check_reachable,
    check_round_trips,
    num_lost,
)
from lepmerge.tokenization.extend import extended, learn
from lepmerge.tokenization.optimize import shrunk_spec, token_counts
from lepmerge.tokenization.report import num_lost_in, symbols_per_token
from lepmerge.tokenization.script import allowed_tokens
from lepmerge.tokenization.train import BYTE_TOKENS, train_bpe, train_unigram, unigram_spec
from lepmerge.tokenization.words import count_words
from lepmerge.version import __version__
from lepmerge.vocabulary.vocabulary import Vocabulary

REPORT = "lepmerge_tokenizer.json"
SAMPLE_TEXTS = 2000
SAMPLE_EVERY = 97
SMALLEST = [["<unk>", 0.0], *([token, -9.0] for token in BYTE_TOKENS), ["▁", -1.0]]
"""The smallest Unigram that can spell every text."""


@dataclass
class Reading:
    """One pass over a corpus. While it yields the texts it counts them, and collects every 97th (at most 2000)."""

    corpus: Corpus
    progress: Progress
    counts: Counts = field(default_factory=Counts)
    sample: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[str]:
        for number, text in enumerate(self.corpus.texts(progress=self.progress, counts=self.counts)):
            if number % SAMPLE_EVERY == 0 and len(self.sample) < SAMPLE_TEXTS:
                self.sample.append(text)
            yield text


@dataclass(frozen=True)
class Built:
    """A new vocabulary, and the results of its checks. words: the words of the corpus, if they were counted."""

    vocabulary: Vocabulary
    checks: Mapping[str, Any]
    words: Counter[str] | None = None
    id_map: Mapping[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Job(ABC):
    """A tokenizer to build from that of `model` and a corpus."""

    model: str
    corpus: Corpus

    @abstractmethod
    def build(self, old: Vocabulary, reading: Reading) -> Built:
        """Return the new vocabulary. Settings that cannot work are refused before the corpus is read."""

    def example(self, old: Vocabulary) -> Vocabulary:
        """Return a vocabulary like the result, to check before a long run that transformers loads it."""
        return Vocabulary(old.spec)

    def tokenizers(self) -> list[Path]:
        """Return the folders of all tokenizers that the job reads."""
        return [resolve(self.model).folder]


@dataclass(frozen=True, kw_only=True)
class Extend(Job):
    """Add tokens that are learned from the corpus. Exactly one of num_tokens and vocab_size is given.

    only_from: a tokenizer; only tokens that it contains are added (the paper's Extension). layout: `after` puts new ids
    after the last used id, so that no old id moves; `before` puts them before the added tokens at the end.
    """

    num_tokens: int | None = None
    vocab_size: int | None = None
    scripts: Sequence[str] = ()
    only_from: str | None = None
    layout: Literal["after", "before"] = "after"

    def tokenizers(self) -> list[Path]:
        return [*super().tokenizers(), *([resolve(self.only_from).folder] if self.only_from else [])]

    def build(self, old: Vocabulary, reading: Reading) -> Built:
        num_tokens = self.num_tokens if self.num_tokens is not None else (self.vocab_size or 0) - old.size
        if num_tokens < 1:
            raise VocabularyError(
                f"--vocab-size {self.vocab_size}: the tokenizer of {self.model} has {old.size} tokens already"
            )
        among = None
        if self.only_from is not None:
            among = frozenset(Vocabulary.in_folder(self.tokenizers()[1]).bytes_of.values())
        words = count_words(reading, old)
        option = "--add" if self.vocab_size is None else "--vocab-size"
        new = _extended(old, words, num_tokens, self.scripts, among, self.layout, option)
        checks = check_extension(old, new, reading.sample, added_move=self.layout == "before")
        return Built(new, checks, words)


@dataclass(frozen=True, kw_only=True)
class Optimize(Job):
    """Keep the fraction `keep` of the old tokens, those that the corpus uses most, then extend to vocab_size.

    The output has a file id_map.json: old id → new id.
    """

    keep: float
    vocab_size: int
    scripts: Sequence[str] = ()

    def build(self, old: Vocabulary, reading: Reading) -> Built:
        words = count_words(reading, old)
        num_kept = round(self.keep * len(old.ordinary))
        spec, id_map = shrunk_spec(old, token_counts(words.items(), old), num_kept=num_kept)
        new = small = Vocabulary(spec)
        if self.vocab_size < small.size:
            raise VocabularyError(
                f"--vocab-size {self.vocab_size} is less than the {small.size} tokens that --keep leaves"
            )
        if self.vocab_size > small.size:
            new = _extended(small, words, self.vocab_size - small.size, self.scripts, option="--vocab-size")
        check_added(old, new)
        checks = {
            "new_tokens": len(new.all_ids.keys() - old.all_ids.keys()),
            "unreachable": check_reachable(new, range(small.size, new.size)),
            "unreachable_kept": num_lost(old, new, id_map),
            "round_trip": check_round_trips(new, reading.sample, old=old),
            "digits": check_digits(old, new),
        }
        return Built(new, checks, words, id_map)


@dataclass(frozen=True, kw_only=True)
class Train(Job):
    """Train a new tokenizer that has the special tokens and the chat template of `model`."""

    kind: Literal["bpe", "unigram"]
    vocab_size: int

    def example(self, old: Vocabulary) -> Vocabulary:
        return Vocabulary(old.spec if self.kind == "bpe" else unigram_spec(SMALLEST, like=old))

    def build(self, old: Vocabulary, reading: Reading) -> Built:
        train = {"bpe": train_bpe, "unigram": train_unigram}[self.kind]
        new = Vocabulary(train(reading, like=old, vocab_size=self.vocab_size))
        check_added(old, new)
        checks = {
            "new_tokens": len(new.all_ids.keys() - old.all_ids.keys()),
            "unreachable": num_lost_in(new),
            "round_trip": check_round_trips(new, reading.sample, old=old if self.kind == "bpe" else None),
        }
        return Built(new, checks)


@contextmanager
def _no_search_for_cycles() -> Iterator[None]:
    """Do not let Python search for cycles in millions of counts and lists that have none: 6 % of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@_no_search_for_cycles()
def build_tokenizer(
    job: Job, output: Path, *, overwrite: bool = False, progress: Progress = no_progress
) -> dict[str, Any]:
    """Write the tokenizer of a job to a folder, and return the contents of its lepmerge_tokenizer.json.

    A complete output of the same job is not built again.

    Raises:
        LepmergeError: the inputs are unusable, a check failed, or the output is refused; nothing is written.
    """
    folders, corpus_files = job.tokenizers(), job.corpus.files()
    files = (*(path for folder in folders for path in tokenizer_files(folder).values()), *corpus_files)
    described = {"lepmerge": __version__, "job": [type(job).__name__, asdict(job)], "inputs": identities(files)}
    run = Run(
        target=output,
        fingerprint=digest(described),
        files=files,
        inputs=(*folders, *corpus_files),
        key="--output",
        overwrite=overwrite,
        marker=REPORT,
    )
    if run.begin():
        return read_json(output / REPORT)
    run.check({})
    old = Vocabulary.in_folder(folders[0])
    check_tokenizer(old, job.example(old))
    reading = Reading(job.corpus, progress)
    built = job.build(old, reading)
    check_tokenizer(old, built.vocabulary)
    report = _report(job, old, built, reading)
    contents = _files(old, built, report)
    sizes = {name: len(content) for name, content in contents.items()}
    with run.opened(sizes) as staging:
        for name, content in contents.items():
            staging.write_bytes(name, content)
    return report


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
        of = f" of the script{'s' if len(scripts) > 1 else ''} {', '.join(scripts)}" if scripts else ""
        raise VocabularyError(
            f"the corpus gives only {len(extension.tokens)} new tokens{of} ({len(words)} different words), "
            f"{num_tokens} were requested: give more text, or a smaller {option}"
        )
    return extended(old, extension, layout=layout)


def _report(job: Job, old: Vocabulary, built: Built, reading: Reading) -> dict[str, Any]:
    new, words = built.vocabulary, built.words
    settings = {each.name: getattr(job, each.name) for each in fields(job) if each.name != "corpus"}
    return {
        "operation": type(job).__name__.lower(),
        **settings,
        **({} if built.id_map is None else {"kept": len(built.id_map)}),
        "corpus": reading.counts.plain(),
        "old_size": old.size,
        "size": new.size,
        **({} if words is None else {"words": {"different": len(words), "total": words.total()}}),
        "symbols_per_token": {
            name: symbols_per_token(each, reading.sample) for name, each in (("old", old), ("new", new))
        },
        "checks": dict(built.checks),
    }


def _files(old: Vocabulary, built: Built, report: Mapping[str, Any]) -> dict[str, bytes]:
    """Return file name → contents of the output folder. The chat templates are those of the old tokenizer."""
    assert old.folder is not None
    kept = tokenizer_files(old.folder, only_templates=True)
    files = {name: path.read_bytes() for name, path in kept.items()}
    files["tokenizer.json"] = to_json(built.vocabulary.spec)
    files["tokenizer_config.json"] = to_json(tokenizer_config(old, built.vocabulary))
    files[REPORT] = to_json(report)
    if built.id_map is not None:
        files["id_map.json"] = to_json({str(old_id): new_id for old_id, new_id in sorted(built.id_map.items())})
    return files
