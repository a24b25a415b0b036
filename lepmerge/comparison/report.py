"""A comparison as one HTML file that needs nothing else: warnings, charts (inline SVG), tables, settings.

The page asks the network for nothing, which its Content-Security-Policy says too. Colours follow the reader's light or
dark setting. Tables are sorted by their main column, best first; a click on a heading sorts by it.
"""

from collections.abc import Mapping
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from lepmerge.comparison.columns import HIGHER, LOWER, Column, Group, groups_of
from lepmerge.errors import OutputError

GENERATOR = '<meta name="generator" content="lepmerge">'
WIDTH, ROW, NAMES, VALUES = 420, 22, 150, 62
"""Of a chart, in its own units: its width, the height of a bar's row, the space of names and of values."""
LONGEST_NAME = 22
TOKENS_SHOWN = 20


def check_writable(path: Path) -> None:
    """Raise OutputError where a report or chart could not be written, before anything is measured.

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
            raise OutputError(f"{path} is there and is no report of lepmerge: name another file")


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
    assets = files("lepmerge") / "comparison"
    names, reference = list(results["models"]), results["reference"]
    groups = groups_of(results)
    parts = [
        f"<h1>{escape(' · '.join(names) if len(names) < 4 else f'{len(names)} models')}</h1>",
        f"<p>Compared with <b>{escape(reference)}</b> by lepmerge {escape(results['lepmerge'])}.</p>",
        _warnings(results["warnings"]),
        *(_section(group, names, reference) for group in groups),
        _suspects(results["models"]),
        _settings(results),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f"{GENERATOR}"
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        "script-src 'unsafe-inline'; img-src data:\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>lepmerge compare: {escape(', '.join(names))}</title>"
        f"<style>{(assets / 'report.css').read_text(encoding='utf-8')}</style></head>\n<body><main>"
        + "\n".join(part for part in parts if part)
        + f"</main><script>{(assets / 'report.js').read_text(encoding='utf-8')}</script></body></html>\n"
    )


def _warnings(warnings: list[str]) -> str:
    if not warnings:
        return '<p class="fine">No warnings.</p>'
    items = "".join(f"<li>{escape(warning)}</li>" for warning in warnings)
    return f'<div class="warnings"><h2>Warnings</h2><ul>{items}</ul></div>'


def _section(group: Group, names: list[str], reference: str) -> str:
    charts = "".join(_chart(column, names, reference) for column in group.columns if column.plotted)
    return (
        f"<section><h2>{escape(group.title)}</h2><p>{escape(group.note)}</p>"
        f'<div class="charts">{charts}</div>{_table(group, names, reference)}</section>'
    )


def _table(group: Group, names: list[str], reference: str) -> str:
    main = group.main_column
    order = sorted(range(len(names)), key=lambda place: _rank(main, place))
    head = "".join(f"<th{_sorted(c, main)}><button>{escape(c.label)}</button></th>" for c in group.columns)
    rows = []
    for place in order:
        cells = "".join(
            f'<td data-value="{"" if c.values[place] is None else c.values[place]}">{c.shown(c.values[place])}</td>'
            for c in group.columns
        )
        mark = ' class="reference"' if names[place] == reference else ""
        rows.append(f"<tr{mark}><th scope=row>{escape(names[place])}</th>{cells}</tr>")
    return (
        f'<div class="scroll"><table><thead><tr><th><button>model</button></th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _rank(column: Column, place: int) -> float:
    value = column.values[place]
    return float("inf") if value is None else -value if column.better == HIGHER else value


def _sorted(column: Column, main: Column) -> str:
    return f' aria-sort="{"descending" if main.better == HIGHER else "ascending"}"' if column is main else ""


def _chart(column: Column, names: list[str], reference: str) -> str:
    """Return horizontal bars from zero, in the models' order, as SVG."""
    largest = max((value for value in column.values if value is not None), default=0.0) or 1.0
    room = WIDTH - NAMES - VALUES
    bars = []
    for place, (name, value) in enumerate(zip(names, column.values, strict=True)):
        y = place * ROW
        short = name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"
        length = room * max(0.0, value or 0.0) / largest
        mark = ' class="reference"' if name == reference else ""
        bars.append(
            f'<text x="{NAMES - 6}" y="{y + 15}" text-anchor="end">{escape(short)}<title>{escape(name)}</title></text>'
            f'<rect x="{NAMES}" y="{y + 4}" width="{length:.1f}" height="{ROW - 8}" rx="2"{mark}/>'
            f'<text x="{NAMES + length + 5:.1f}" y="{y + 15}">{column.shown(value) or "–"}</text>'
        )
    better = {LOWER: "lower is better", HIGHER: "higher is better"}.get(column.better, "")
    caption = escape(column.label) + (f" <small>{better}</small>" if better else "")
    return (
        f"<figure><figcaption>{caption}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {len(names) * ROW + 2}" role="img" aria-label="{escape(column.label)}">'
        f"{''.join(bars)}</svg></figure>"
    )


def _suspects(models: Mapping[str, Any]) -> str:
    parts = []
    for name, figures in models.items():
        for side, title in (("written", "output"), ("read", "input")):
            suspects = figures.get("tokens", {}).get(side, {}).get("suspects", [])
            if not suspects:
                continue
            rows = "".join(
                f"<tr><th scope=row>{escape(repr(token['text']))}</th><td>{token['id']}</td>"
                f"<td>{'new' if token['new'] else 'shared'}</td><td>{token['occurrences']}</td>"
                f"<td>{token['excess_bits']:.1f} ± {token['standard_error']:.1f}</td></tr>"
                for token in suspects[:TOKENS_SHOWN]
            )
            shown = f", the worst {TOKENS_SHOWN}" if len(suspects) > TOKENS_SHOWN else ""
            parts.append(
                f"<details><summary>{escape(name)}, {title} table: {len(suspects)} tokens{shown}</summary>"
                '<div class="scroll"><table><thead><tr><th>token</th><th>id</th><th></th><th>occurrences</th>'
                f"<th>excess, bits</th></tr></thead><tbody>{rows}</tbody></table></div></details>"
            )
    return f"<section><h2>Suspect tokens</h2>{''.join(parts)}</section>" if parts else ""


def _settings(results: Mapping[str, Any]) -> str:
    lines: list[tuple[str, Any]] = [
        *((f"model {name}", figures["folder"]) for name, figures in results["models"].items()),
        *(
            (f"text {name}", f"{', '.join(text['files'])}: {text['bytes']:,} bytes, {text['pieces']:,} pieces")
            for name, text in results["texts"].items()
        ),
        ("device", f"{results['device']}, {results['threads']} threads"),
        *((key.replace("_", " "), value) for key, value in results["settings"].items() if value is not None),
        *results["versions"].items(),
    ]
    rows = "".join(
        f"<tr><th scope=row>{escape(str(key))}</th><td>{escape(str(value))}</td></tr>" for key, value in lines
    )
    return f'<section><h2>Settings</h2><div class="scroll"><table class="settings">{rows}</table></div></section>'
