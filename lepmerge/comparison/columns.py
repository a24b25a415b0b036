"""The results of a comparison as groups of columns, shared by the terminal, the chart and the report."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

LOWER, HIGHER = "lower", "higher"


@dataclass(frozen=True)
class Column:
    """One metric of every model, None where it was not measured.

    meaning: one sentence for readers. better: LOWER, HIGHER or "" where neither is. text: the text it was measured on.
    """

    name: str
    values: tuple[float | None, ...]
    digits: str
    meaning: str
    better: str = ""
    plotted: bool = True
    text: str = ""

    @property
    def label(self) -> str:
        return f"{self.name} {self.text}".rstrip()

    def shown(self, value: float | None) -> str:
        return "" if value is None else f"{value:{self.digits}}"


@dataclass(frozen=True)
class Group:
    """Columns under one title, with a note on how they were measured. main: the name of the column to sort by."""

    title: str
    note: str
    main: str
    columns: tuple[Column, ...]

    @property
    def main_column(self) -> Column:
        """The main column of the first text, or the first column if the main one was not measured."""
        return next((column for column in self.columns if column.name == self.main), self.columns[0])

    @property
    def meanings(self) -> dict[str, str]:
        """Column name → meaning; columns of several texts appear once."""
        return {column.name: column.meaning for column in self.columns}


Get = Callable[[Mapping[str, Any]], Any]
"""Return a value from the results of one model or text. A KeyError means that it was not measured."""


def groups_of(results: Mapping[str, Any]) -> list[Group]:
    """Return the groups of columns that were measured for at least one model."""
    reference = results["reference"]
    groups = [
        _texts(results),
        _generation(results),
        _copies(results),
        Group(
            "Chats",
            f"the greedy answers of {reference} to the prompts",
            "bits/byte",
            (
                _column(results, "bits/byte", lambda m: m["chat"]["bits_per_byte"], ".3f",
                        f"Bits that the model needs per byte of {reference}'s answers.", LOWER),
                _column(results, "same answers", lambda m: m["chat"]["equal_answers"], ".1%",
                        f"Fraction of prompts that the model answers exactly as {reference} does.", HIGHER),
            ),
        ),
        Group(
            "Task",
            f"a greedy reply is right if it equals the answer; compared with {reference} example by example",
            "accuracy",
            (
                _column(results, "accuracy", lambda m: m["task"]["accuracy"], ".3f",
                        "Fraction of right replies.", HIGHER),
                _column(results, "right here only", lambda m: m["task"]["only_this"], "d",
                        f"Examples that this model gets right and {reference} gets wrong.", plotted=False),
                _column(results, "right there only", lambda m: m["task"]["only_reference"], "d",
                        f"Examples that {reference} gets right and this model gets wrong.", plotted=False),
                _column(results, "p", lambda m: m["task"]["p"], ".2g",
                        "p-value of the exact McNemar test on these two counts: below 0.05, the difference in accuracy "
                        "is significant at the 5 % level.", plotted=False),
            ),
        ),
        Group(
            "Rows of shared tokens",
            f"tokens whose bytes are in both vocabularies, compared with {reference}",
            "drift, input",
            (
                _column(results, "shared", lambda m: m["drift"]["shared"], "d",
                        "Number of shared tokens.", plotted=False),
                _column(results, "drift, input", lambda m: m["drift"]["input"], ".3f",
                        "Norm of the difference of their input embeddings, divided by the norm of the reference's.",
                        LOWER),
                _column(results, "drift, output", lambda m: m["drift"]["output"], ".3f",
                        "The same for the output embeddings.", LOWER),
                _column(results, "suspect, input", lambda m: len(m["tokens"]["read"]["suspects"]), "d",
                        "Tokens (shared or new) after which the text costs over 4 bits more than under the reference: "
                        "their input rows look broken.", LOWER, plotted=False),
                _column(results, "suspect, output", lambda m: len(m["tokens"]["written"]["suspects"]), "d",
                        "Tokens (shared or new) that cost over 4 bits more than the same bytes under the reference: "
                        "their output rows look broken.", LOWER, plotted=False),
            ),
        ),
    ]  # fmt: skip
    kept = [
        replace(group, columns=tuple(c for c in group.columns if any(v is not None for v in c.values)))
        for group in groups
    ]
    return [group for group in kept if group.columns]


def _texts(results: Mapping[str, Any]) -> Group:
    return Group(
        "Texts",
        f"in pieces of at most {results['settings']['piece_bytes']} bytes, each predicted without the text before it",
        "bits/byte",
        (
            _column(results, "rows", lambda m: m["rows"], "d", "Rows of the embedding tables.", plotted=False),
            *_text_columns(results, "symbols/token", lambda t: t["symbols_per_token"], ".2f",
                           "Characters per token.", HIGHER),
            *_text_columns(results, "tokens/word", lambda t: t["tokens_per_word"], ".2f",
                           "Tokens per word, where words are separated by white space.", LOWER),
            *_text_columns(results, "context", lambda t: t["context_characters"], ".0f",
                           "Characters of such text that fit the model's context.", HIGHER, plotted=False),
            *_text_columns(results, "bits/byte", lambda t: t["bits_per_byte"], ".3f",
                           "Bits that the model needs per byte of UTF-8, comparable between vocabularies.", LOWER),
        ),
    )  # fmt: skip


def _generation(results: Mapping[str, Any]) -> Group:
    models = list(results["models"].values())
    batches = [t["generation"]["batch"] for m in models for t in m["texts"].values() if "generation" in t]
    return Group(
        "Generation",
        f"greedy, {results['settings']['speed_tokens']} tokens per sequence, {max(batches, default=0)} sequences at "
        f"once, {results['device']}, {', '.join(sorted({model['dtype'] for model in models}))}, "
        f"{results['threads']} threads",
        "characters/s",
        (
            *_text_columns(results, "characters/s", lambda t: t["generation"]["characters_per_second"], ".0f",
                           "Characters generated per second.", HIGHER),
            *_text_columns(results, "new tokens", lambda t: t["generation"]["new_tokens_share"], ".1%",
                           f"Fraction of generated tokens that {results['reference']}'s vocabulary lacks."),
        ),
    )  # fmt: skip


def _copies(results: Mapping[str, Any]) -> Group:
    copies = results["settings"]["copies"]
    return Group(
        "Exact copies",
        f"the model repeats at most {copies} sentences and {copies} paragraphs of each text",
        "sentences",
        (
            *_text_columns(results, "sentences", lambda t: t["copying"]["sentences"]["exact"], ".1%",
                           "Fraction of sentences that are copied exactly.", HIGHER),
            *_text_columns(results, "matched", lambda t: t["copying"]["sentences"]["matched"], ".1%",
                           "Fraction of a sentence's characters that the copy has in the same order (mean).", HIGHER),
            *_text_columns(results, "paragraphs", lambda t: t["copying"]["paragraphs"]["exact"], ".1%",
                           "Fraction of paragraphs that are copied exactly.", HIGHER),
            *_text_columns(results, "matched in paragraphs", lambda t: t["copying"]["paragraphs"]["matched"], ".1%",
                           "Fraction of a paragraph's characters that the copy has in the same order (mean).", HIGHER),
        ),
    )  # fmt: skip


def charts_of(results: Mapping[str, Any]) -> dict[str, Column]:
    """Return chart title → column for the columns that are plotted."""
    return {
        f"{group.title}: {column.label}": column
        for group in groups_of(results)
        for column in group.columns
        if column.plotted
    }


def _column(
    results: Mapping[str, Any], name: str, get: Get, digits: str, meaning: str, better: str = "", **kwargs: Any
) -> Column:
    values = tuple(_or_none(get, model) for model in results["models"].values())
    return Column(name, values, digits, meaning, better, **kwargs)


def _text_columns(
    results: Mapping[str, Any], name: str, get: Get, digits: str, meaning: str, better: str = "", **kwargs: Any
) -> list[Column]:
    """Return one column per text."""
    return [
        _column(results, name, lambda m, text=text: get(m["texts"][text]), digits, meaning, better, text=text, **kwargs)
        for text in results["texts"]
    ]


def _or_none(get: Get, model: Mapping[str, Any]) -> float | None:
    try:
        return get(model)
    except KeyError:  # not measured for this model
        return None
