"""Charts as PNG files."""

from collections.abc import Mapping
from pathlib import Path

from lepmerge.errors import OutputError


def bars(path: Path, values: Mapping[str, Mapping[str, float]], *, label: str) -> None:
    """Write a chart with a group of bars for each outer key and a bar for each inner one.

    Raises:
        OutputError: matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise OutputError(f"{path}: charts need a package: pip install 'lepmerge[plots]'") from error
    names = list(dict.fromkeys(name for group in values.values() for name in group))
    figure = Figure(figsize=(2 + 1.2 * len(values) * max(2, len(names)) / 2, 4), layout="constrained")
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
    figure.legend(loc="outside upper center", ncols=min(3, len(names)), frameon=False)
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error
