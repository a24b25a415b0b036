"""A comparison as one self-contained HTML file: warnings, charts (inline SVG), tables, settings.

`report.html.jinja` is the page; this module computes what it shows. The page makes no network request, and its
Content-Security-Policy forbids them. Colours follow the reader's light or dark setting. Tables are sorted by their main
column, best first. A click on a heading sorts by that column.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from lepmerge.comparison.columns import HIGHER, Column, Group, groups_of
from lepmerge.errors import OutputError

GENERATOR = '<meta name="generator" content="lepmerge">'
WIDTH, ROW_HEIGHT, BAR_START, VALUES = 420, 22, 150, 62
"""Sizes in a chart, in SVG units: its width, the height of a row, where bars start, the room for values."""
LONGEST_NAME = 22
TOKENS_SHOWN = 20


def check_writable(path: Path) -> None:
    """Raise OutputError if a report or chart could not be written. Called before anything is measured.

    An HTML file that lepmerge did not write is never replaced.
    """
    if not path.parent.is_dir():
        raise OutputError(f"{path}: there is no folder {path.parent}")
    if path.suffix in (".html", ".htm") and path.exists():
        try:
            head = path.read_text(encoding="utf-8", errors="replace")[:4096]
        except OSError as error:
            raise OutputError(f"{path} cannot be read: {error.strerror}") from error
        if GENERATOR not in head:
            raise OutputError(f"{path} exists and was not written by lepmerge: name another file")


def write_report(path: Path, results: Mapping[str, Any]) -> None:
    """Write the report.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        path.write_text(report_of(results), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error


def report_of(results: Mapping[str, Any]) -> str:
    """Return the page."""
    names, reference = list(results["models"]), results["reference"]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_asset("report.html.jinja")).render(
        results=results,
        names=names,
        reference=reference,
        sections=[_section(group, names) for group in groups_of(results)],
        suspects=_suspects(results["models"]),
        settings=_settings(results),
        mark=lambda name: Markup(' class="reference"') if name == reference else "",
        generator=Markup(GENERATOR),
        style=Markup(_asset("report.css")),
        script=Markup(_asset("report.js")),
        width=WIDTH,
        row_height=ROW_HEIGHT,
        bar_start=BAR_START,
        tokens_shown=TOKENS_SHOWN,
    )


def _asset(name: str) -> str:
    return (files("lepmerge") / "comparison" / name).read_text(encoding="utf-8")


@dataclass(frozen=True)
class _Bar:
    """A row of a chart: the model's name, the row's top and the bar's length in SVG units, the printed value."""

    name: str
    top: int
    length: float
    value: str

    @property
    def short_name(self) -> str:
        return self.name if len(self.name) <= LONGEST_NAME else self.name[: LONGEST_NAME - 1] + "…"


def _section(group: Group, names: list[str]) -> dict[str, Any]:
    """Return a group's charts, the order of its rows (indices of models, best first) and the sort direction."""
    main = group.main_column
    return {
        "group": group,
        "charts": [(column, _bars(column, names)) for column in group.columns if column.plotted],
        "order": sorted(range(len(names)), key=lambda place: _rank(main, place)),
        "direction": "descending" if main.better == HIGHER else "ascending",
    }


def _rank(column: Column, place: int) -> float:
    value = column.values[place]
    return float("inf") if value is None else -value if column.better == HIGHER else value


def _bars(column: Column, names: list[str]) -> list[_Bar]:
    """Return horizontal bars that start at zero, in the models' order. The largest value fills the room."""
    largest = max((value for value in column.values if value is not None), default=0.0) or 1.0
    room = WIDTH - BAR_START - VALUES
    return [
        _Bar(name, place * ROW_HEIGHT, room * max(0.0, value or 0.0) / largest, column.shown(value))
        for place, (name, value) in enumerate(zip(names, column.values, strict=True))
    ]


def _suspects(models: Mapping[str, Any]) -> list[tuple[str, str, list[Mapping[str, Any]]]]:
    """Return (model, table, suspect tokens, worst first) for each table that has suspect tokens."""
    return [
        (name, table, suspects)
        for name, measured in models.items()
        for side, table in (("written", "output"), ("read", "input"))
        if (suspects := measured.get("tokens", {}).get(side, {}).get("suspects", []))
    ]


def _settings(results: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [
        *((f"model {name}", measured["folder"]) for name, measured in results["models"].items()),
        *(
            (f"text {name}", f"{', '.join(text['files'])}: {text['bytes']:,} bytes, {text['pieces']:,} pieces")
            for name, text in results["texts"].items()
        ),
        ("device", f"{results['device']}, {results['threads']} threads"),
        *((key.replace("_", " "), value) for key, value in results["settings"].items() if value is not None),
        *results["versions"].items(),
    ]
