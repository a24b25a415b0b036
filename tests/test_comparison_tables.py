"""lepmerge compare: what users read on the terminal, in the chart and in the report, value by value."""

from html.parser import HTMLParser
from typing import Any

import pytest

from lepmerge.commands.compare import show
from lepmerge.comparison.columns import charts_of, groups_of
from lepmerge.comparison.report import report_of

SUSPECT = {"id": 7, "text": "<ы>", "new": True, "excess_bits": 9.04, "standard_error": 0.55, "occurrences": 6}


def text_results(bits: float, speed: float) -> dict[str, Any]:
    return {
        "symbols_per_token": 2.345,
        "tokens_per_word": 3.456,
        "context_characters": 1200.6,
        "bits_per_byte": bits,
        "generation": {"characters_per_second": speed, "new_tokens_share": 0.125, "batch": 8},
        "copying": {"sentences": {"exact": 0.5, "matched": 0.75}},
    }


def model_results(bits: float, speed: float, **others: Any) -> dict[str, Any]:
    return {"folder": "out/x", "rows": 99, "dtype": "float32", "texts": {"ru": text_results(bits, speed)}, **others}


RESULTS: dict[str, Any] = {
    "lepmerge": "1.2.3",
    "versions": {"torch": "9.9"},
    "device": "cpu",
    "threads": 2,
    "reference": "a<b>",
    "settings": {"piece_bytes": 1024, "speed_tokens": 64, "copies": 20, "task": None},
    "texts": {"ru": {"files": ["ru.txt"], "bytes": 2048, "pieces": 3}},
    "models": {
        "a<b>": model_results(1.5, 100, task={"examples": 4, "accuracy": 0.5}),
        "worse": model_results(
            2.0,
            300,
            task={"examples": 4, "accuracy": 0.25, "only_this": 3, "only_reference": 4, "p": 0.0421},
            drift={"shared": 11, "input": 0.3, "output": 0.4},
            tokens={"read": {"suspects": []}, "written": {"suspects": [SUSPECT, {**SUSPECT, "new": False}]}},
            chat={"bits_per_byte": 0.7, "equal_answers": 0.6},
        ),
        "best": model_results(
            1.0,
            200,
            task={"examples": 4, "accuracy": 0.75, "only_this": 2, "only_reference": 1, "p": 1.0},
            drift={"shared": 12, "input": 0.2, "output": None},
            tokens={"read": {"suspects": [SUSPECT]}, "written": {"suspects": []}},
        ),
    },
    "warnings": ["worse: <look> here"],
}
EXPECTED = {
    "Texts": ("rows", "symbols/token ru", "tokens/word ru", "context ru", "bits/byte ru"),
    "Generation": ("characters/s ru", "new tokens ru"),
    "Exact copies": ("sentences ru", "matched ru"),
    "Chats": ("bits/byte", "same answers"),
    "Task": ("accuracy", "right here only", "right there only", "p"),
    "Rows of shared tokens": ("shared", "drift, input", "drift, output", "suspect, input", "suspect, output"),
}
CELLS = {
    "Texts": {
        "a<b>": "99 2.35 3.46 1201 1.500",
        "worse": "99 2.35 3.46 1201 2.000",
        "best": "99 2.35 3.46 1201 1.000",
    },
    "Generation": {"a<b>": "100 12.5%", "worse": "300 12.5%", "best": "200 12.5%"},
    "Exact copies": dict.fromkeys(("a<b>", "worse", "best"), "50.0% 75.0%"),
    "Chats": {"a<b>": "", "worse": "0.700 60.0%", "best": ""},
    "Task": {"a<b>": "0.500", "worse": "0.250 3 4 0.042", "best": "0.750 2 1 1"},
    "Rows of shared tokens": {"a<b>": "", "worse": "11 0.300 0.400 0 2", "best": "12 0.200 1 0"},
}
"""Title → model → its row, read from left to right without empty cells."""
BEST_FIRST = {
    "Texts": ["best", "a<b>", "worse"],
    "Generation": ["worse", "best", "a<b>"],
    "Exact copies": ["a<b>", "worse", "best"],
    "Chats": ["worse", "a<b>", "best"],
    "Task": ["best", "a<b>", "worse"],
    "Rows of shared tokens": ["best", "worse", "a<b>"],
}
BETTER = {
    "symbols/token ru": "higher", "tokens/word ru": "lower", "bits/byte ru": "lower", "characters/s ru": "higher",
    "new tokens ru": "", "sentences ru": "higher", "matched ru": "higher", "bits/byte": "lower",
    "same answers": "higher", "accuracy": "higher", "drift, input": "lower", "drift, output": "lower",
}  # fmt: skip


class Page(HTMLParser):
    """The text of a page by tag, and its tables as rows of cells, each after the class of its row."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text_of: dict[str, list[str]] = {}
        self.tables: list[list[list[str]]] = []
        self.bars: list[dict[str, str | None]] = []
        self.sorted: list[str] = []
        self.tag = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tag = tag
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([dict(attrs).get("class") or ""])
        elif tag in ("td", "th") and self.tables:
            self.tables[-1][-1].append("")
            self.sorted += [f"{direction}" for name, direction in attrs if name == "aria-sort"]
        if tag in ("p", "dt", "dd", "li", "figcaption", "small", "summary", "title", "h1", "h2"):
            self.text_of.setdefault(tag, []).append("")

    def handle_startendtag(self, tag, attrs):
        if tag == "rect":
            self.bars.append(dict(attrs))

    def handle_endtag(self, tag):
        self.tag = ""

    def handle_data(self, data):
        if self.tag in ("td", "th", "button"):
            self.tables[-1][-1][-1] += data
        elif self.tag in self.text_of:
            self.text_of[self.tag][-1] += data


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(report_of(RESULTS))


def test_the_terminal_shows_every_value_and_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    show(RESULTS)
    out, err = capsys.readouterr()
    blocks = [block.splitlines() for block in out.strip().split("\n\n")]
    assert [block[0].partition(" (")[0] for block in blocks] == list(EXPECTED)
    for (title, labels), block, group in zip(EXPECTED.items(), blocks, groups_of(RESULTS), strict=True):
        assert block[1].split() == " ".join(["model", *labels]).split()
        assert {line.split()[0]: " ".join(line.split()[1:]) for line in block[2:5]} == CELLS[title]
        assert [line.split()[0] for line in block[2:5]] == list(RESULTS["models"])
        assert block[5:] == [f"  {name}: {meaning}" for name, meaning in group.meanings.items()]
        assert len(group.meanings) == len(labels) and all(group.meanings.values())
    assert err == "warning: worse: <look> here\n"


def test_the_reference_is_named_where_models_are_compared_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    show(RESULTS)
    lines = capsys.readouterr().out.splitlines()
    assert "  right here only: Examples that this model gets right and a<b> gets wrong." in lines
    assert "  right there only: Examples that a<b> gets right and this model gets wrong." in lines
    assert any("exact McNemar test" in line and "below 0.05" in line for line in lines)


def test_the_report_has_the_same_values_best_first(page: Page) -> None:
    *groups, _, _, settings = page.tables
    for (title, labels), (head, *rows) in zip(EXPECTED.items(), groups, strict=True):
        assert head == ["", "model", *labels]
        assert [row[1] for row in rows] == BEST_FIRST[title]
        assert {row[1]: " ".join(filter(None, row[2:])) for row in rows} == CELLS[title]
        assert {row[1] for row in rows if row[0] == "reference"} == {"a<b>"}
    assert page.sorted == ["ascending", "descending", "descending", "ascending", "descending", "ascending"]
    assert ["", "text ru", "ru.txt: 2,048 bytes, 3 pieces"] in settings
    assert ["", "device", "cpu, 2 threads"] in settings and ["", "torch", "9.9"] in settings
    assert not any(row[1] == "task" for row in settings)
    assert page.text_of["li"] == ["worse: <look> here"]
    assert page.text_of["h1"] == ["a<b> · worse · best"]


def test_the_report_explains_every_column(page: Page) -> None:
    groups = groups_of(RESULTS)
    assert page.text_of["dt"] == [name for group in groups for name in group.meanings]
    assert page.text_of["dd"] == [meaning for group in groups for meaning in group.meanings.values()]


def test_suspect_tokens_of_the_report(page: Page) -> None:
    written, read = page.tables[-3:-1]
    assert page.text_of["summary"] == ["worse, output table: 2 tokens", "best, input table: 1 tokens"]
    assert written[1:] == [["", "'<ы>'", "7", kind, "6", "9.0 ± 0.6"] for kind in ("new", "shared")]
    assert read[1:] == [["", "'<ы>'", "7", "new", "6", "9.0 ± 0.6"]]


def test_charts_say_which_direction_is_better(page: Page) -> None:
    charts = charts_of(RESULTS)
    assert {title.partition(": ")[2]: column.better for title, column in charts.items()} == BETTER
    assert page.text_of["figcaption"] == [f"{label} " if better else label for label, better in BETTER.items()]
    assert page.text_of["small"] == [f"{better} is better" for better in BETTER.values() if better]


def test_bars_are_proportional_in_the_models_order(page: Page) -> None:
    bars = page.bars[3 * list(BETTER).index("bits/byte ru") :][:3]
    widths = [float(bar["width"] or "nan") for bar in bars]
    assert widths == [pytest.approx(widths[1] * part, abs=0.1) for part in (0.75, 1, 0.5)]
    assert [bar.get("class") for bar in bars] == ["reference", None, None]
