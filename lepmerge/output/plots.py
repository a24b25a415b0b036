"""Write charts as PNG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lepmerge.errors import OutputError

LEGEND_MARGIN = 0.2
"""Inches beside a legend."""


def bars(path: Path, values: Mapping[str, Mapping[str, float]], *, label: str) -> None:
    """Write a chart with one group of bars per outer key and one bar per inner key.

    Raises:
        OutputError: matplotlib is not installed, or the file cannot be written.
    """
    names = list(dict.fromkeys(name for group in values.values() for name in group))
    figure = _figure(path, 2 + 1.2 * len(values) * max(2, len(names)) / 2, 4)
    axes = figure.add_subplot()
    width = 0.8 / len(names)
    for place, name in enumerate(names):
        positions = [group + (place - (len(names) - 1) / 2) * width for group in range(len(values))]
        drawn = axes.bar(positions, [group.get(name, 0.0) for group in values.values()], width, label=name)
        axes.bar_label(drawn, fmt="%.2f", padding=2, fontsize=8)
    axes.set_xticks(range(len(values)), [Path(name).name for name in values])
    axes.set_ylabel(label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(y=0.15)
    _add_legend(figure, len(names))
    _save(figure, path)


def curves(path: Path, panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]], *, x: str) -> None:
    """Write a chart with one panel per outer key, its label, side by side, and in it one line (x, y) per inner key.

    Raises:
        OutputError: matplotlib is not installed, or the file cannot be written.
    """
    figure = _figure(path, 5.5 * len(panels), 3.8)
    for number, (label, lines) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(1, len(panels), number)
        for name, (positions, values) in lines.items():
            axes.plot(positions, values, label=name, marker="o" if len(values) < 40 else None, markersize=3)
        axes.set_xlabel(x)
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if len(lines) > 1 or any(lines):
            axes.legend(frameon=False)
    _save(figure, path)


def panels(
    path: Path,
    values: Mapping[str, Sequence[tuple[float | None, float | None]]],
    names: Sequence[str],
    *,
    strong: int,
    per_row: int | None = None,
    digits: Mapping[str, str] | None = None,
    marked: str | None = None,
) -> None:
    """Write a chart with one panel per key, and in it one horizontal bar (value, error or None) per name.

    strong: the first `strong` names are drawn in colour, the others in grey. per_row: number of panels side by side
    (default: all). digits: key → format of the values (default: ".3f"). marked: name whose bars get another colour.

    Raises:
        OutputError: matplotlib is not installed, or the file cannot be written.
    """
    per_row = min(per_row or len(values), len(values))
    num_rows = -(-len(values) // per_row)
    figure = _figure(path, 2.6 * per_row + 2.6, num_rows * (1.4 + 0.27 * len(names)))
    colours = [
        "tab:orange" if name == marked else "tab:blue" if place < strong else "silver"
        for place, name in enumerate(names)
    ]
    first = None
    for number, (label, bars_of_panel) in enumerate(values.items(), 1):
        axes = figure.add_subplot(num_rows, per_row, number, sharey=first)
        first = first or axes
        form = (digits or {}).get(label, ".3f")
        lengths = [value or 0.0 for value, _ in bars_of_panel]
        axes.barh(range(len(names)), lengths, color=colours)
        for place, (value, error) in enumerate(bars_of_panel):
            if value is not None:
                if error is not None:
                    axes.errorbar(value, place, xerr=error, color="black", capsize=2)
                end = (value + (error or 0.0), place)
                axes.annotate(f"{value:{form}}", end, (3, 0), textcoords="offset points", va="center", fontsize=8)
        axes.set_title(label, fontsize=10)
        axes.set_xlim(0, 1.25 * max([*lengths, 0.01]))
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(axis="y", labelleft=number % per_row == 1 or per_row == 1, labelsize=8)
        axes.locator_params(axis="x", nbins=4)
        if form.endswith("%"):
            axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
    assert first is not None
    first.set_yticks(range(len(names)), names)
    first.invert_yaxis()
    _save(figure, path)


def _add_legend(figure: Any, num_names: int) -> None:
    """Put a legend above the chart, with as many columns as fit. Widen the figure if even one column is too wide."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(figure).get_renderer()
    for columns in range(min(3, num_names), 0, -1):
        legend = figure.legend(loc="outside upper center", ncols=columns, frameon=False)
        width = legend.get_window_extent(renderer).width / figure.dpi + LEGEND_MARGIN
        if width <= figure.get_figwidth() or columns == 1:
            figure.set_figwidth(max(width, figure.get_figwidth()))
            return
        legend.remove()


def _figure(path: Path, width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise OutputError(f"{path}: charts need a package: pip install 'lepmerge[plots]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, path: Path) -> None:
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error
    except ValueError as error:  # a format that matplotlib does not know
        raise OutputError(f"{path} cannot be written: {error}") from error
