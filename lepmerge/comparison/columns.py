"""The figures of a comparison as groups of columns, the same for the terminal, the chart and the report."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

LOWER, HIGHER = "lower", "higher"


@dataclass(frozen=True)
class Column:
    """One figure of every model, None where it was not measured. better: LOWER, HIGHER or "" where neither is."""

    label: str
    values: tuple[float | None, ...]
    digits: str
    better: str = ""
    plotted: bool = True

    def shown(self, value: float | None) -> str:
        return "" if value is None else f"{value:{self.digits}}"


@dataclass(frozen=True)
class Group:
    """Columns that belong together under a title, with what they mean.

    main: how the label of the most telling begins.
    """

    title: str
    note: str
    main: str
    columns: tuple[Column, ...]

    @property
    def main_column(self) -> Column:
        """The first of the main columns, that of the first text; the first column where they were not measured."""
        return next((column for column in self.columns if column.label.startswith(self.main)), self.columns[0])


def groups_of(results: Mapping[str, Any]) -> list[Group]:
    """Return what was measured; columns that no model has are left out."""
    models: list[Mapping[str, Any]] = list(results["models"].values())
    texts = list(results["texts"])
    settings = results["settings"]

    def column(label: str, get: Callable[[Mapping[str, Any]], Any], digits: str, better: str = "", **kwargs) -> Column:
        return Column(label, tuple(_or_none(get, model) for model in models), digits, better, **kwargs)

    def of_texts(*wanted: tuple[str, tuple[str, ...], str, str]) -> list[Column]:
        return [
            column(f"{label} {text}", lambda m, text=text, path=path: _deep(m["texts"][text], path), digits, better)
            for label, path, digits, better in wanted
            for text in texts
        ]

    groups = [
        Group(
            "Texts",
            f"bits per byte on pieces of at most {settings['piece_bytes']} bytes, each from its beginning",
            "bits/byte",
            (
                column("rows", lambda m: m["rows"], "d", plotted=False),
                *of_texts(
                    ("symbols/token", ("symbols_per_token",), ".2f", HIGHER),
                    ("tokens/word", ("tokens_per_word",), ".2f", LOWER),
                    ("bits/byte", ("bits_per_byte",), ".3f", LOWER),
                ),
            ),
        ),
        Group(
            "Generation",
            f"greedy, {settings['speed_tokens']} tokens a sequence, {_batch(models)} sequences at once, "
            f"{results['device']}, {', '.join(sorted({model['dtype'] for model in models}))}, "
            f"{results['threads']} threads",
            "characters/s",
            tuple(
                of_texts(
                    ("characters/s", ("generation", "characters_per_second"), ".0f", HIGHER),
                    ("new tokens", ("generation", "new_tokens_share"), ".1%", ""),
                )
            ),
        ),
        Group(
            "Exact copies",
            f"at most {settings['copies']} sentences and {settings['copies']} paragraphs of each text; matched: share "
            f"of the characters that come back in order",
            "sentences",
            tuple(
                of_texts(
                    ("sentences", ("copying", "sentences", "exact"), ".1%", HIGHER),
                    ("matched", ("copying", "sentences", "matched"), ".1%", HIGHER),
                    ("paragraphs", ("copying", "paragraphs", "exact"), ".1%", HIGHER),
                    ("matched in paragraphs", ("copying", "paragraphs", "matched"), ".1%", HIGHER),
                )
            ),
        ),
        Group(
            "Chats",
            f"the answers of {results['reference']}: bits per byte under each model, and how often it gives the same",
            "bits/byte",
            (
                column("bits/byte", lambda m: m["chat"]["bits_per_byte"], ".3f", LOWER),
                column("same answers", lambda m: m["chat"]["equal_answers"], ".1%", HIGHER),
            ),
        ),
        Group(
            "Task",
            f"greedy reply equals the answer; p: exact McNemar test against {results['reference']}",
            "accuracy",
            (
                column("accuracy", lambda m: m["task"]["accuracy"], ".3f", HIGHER),
                column("right here only", lambda m: m["task"]["only_this"], "d", plotted=False),
                column("right there only", lambda m: m["task"]["only_reference"], "d", plotted=False),
                column("p", lambda m: m["task"]["p"], ".2g", plotted=False),
            ),
        ),
        Group(
            "Rows of shared tokens",
            f"their distance from {results['reference']}'s, as a share of these rows' norm; suspect: tokens that cost "
            f"over 4 bits too much (output), or what follows them does (input)",
            "drift, input",
            (
                column("shared", lambda m: m["drift"]["shared"], "d", plotted=False),
                column("drift, input", lambda m: m["drift"]["input"], ".3f", LOWER),
                column("drift, output", lambda m: m["drift"]["output"], ".3f", LOWER),
                column("suspect, input", lambda m: len(m["tokens"]["read"]["suspects"]), "d", LOWER, plotted=False),
                column("suspect, output", lambda m: len(m["tokens"]["written"]["suspects"]), "d", LOWER, plotted=False),
            ),
        ),
    ]
    kept = [
        replace(group, columns=tuple(c for c in group.columns if any(v is not None for v in c.values)))
        for group in groups
    ]
    return [group for group in kept if group.columns]


def charts_of(results: Mapping[str, Any]) -> dict[str, Column]:
    """Return title → the column, of what is worth a chart."""
    return {
        f"{group.title}: {column.label}": column
        for group in groups_of(results)
        for column in group.columns
        if column.plotted
    }


def _or_none(get: Callable[[Mapping[str, Any]], Any], model: Mapping[str, Any]) -> float | None:
    try:
        return get(model)
    except KeyError:  # not measured of this model
        return None


def _deep(found: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        found = found[key]
    return found


def _batch(models: list[Mapping[str, Any]]) -> int:
    found = [
        text["generation"]["batch"] for model in models for text in model["texts"].values() if "generation" in text
    ]
    return max(found, default=0)
