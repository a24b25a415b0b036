"""Writes the tables and the plot of docs/methods.md from benchmarks/results/methods.json.

python benchmarks/methods/report.py [--again FILE]
"""

import argparse
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.figure import Figure

from lepmerge.comparison.task import mcnemar

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "methods.json"
CALIBRATED = RESULTS.with_name("calibrated.json")
PAGE = ROOT / "docs" / "methods.md"
METHODS = ("swap", "overlap", "conversion", "delta")
OLD, MEAN, BEST, PAPER = "old vocabulary", "mean", "delta", "conversion"
PROBE = "kept: "
"""In the names of ways that keep a part of the shared rows."""
AFTER = (
    *(", calibrated", ", on prompts", ", with LoRA"),
    *(", LoRA, answers weighed, 1500 steps", ", LoRA, answers weighed", ", answers weighed"),
)
"""Ends of the names of calibrated models: the kinds of calibration.py. A name that ends another one comes after it."""
LEVEL = 0.05
Row = dict[str, Any]
Cell = tuple[int, str, str]
"""Width, strength and regime."""


def cells_of(rows: Iterable[Row]) -> dict[Cell, dict[str, list[Row]]]:
    """Return cell → way → its rows, one per seed; rows without a regime are in both."""
    found: dict[Cell, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        regimes = ("new", "all") if start_of(row["way"]) in (OLD, MEAN) else (row["regime"],)
        for regime in regimes:
            found[row["width"], row["strength"], regime][row["way"]].append(row)
    return {cell: dict(sorted(ways.items(), key=lambda item: order(item[0]))) for cell, ways in sorted(found.items())}


def start_of(way: str) -> str:
    """Return the way from which a calibration started; any other way is its own start."""
    for end in AFTER:
        way = way.removesuffix(end)
    return way


def order(way: str) -> tuple[int, str]:
    known = [OLD, MEAN, *(name for method in METHODS for name in (method, f"{method} + kept"))]
    if way.endswith(AFTER):
        return (known.index(start_of(way)), way)
    return (known.index(way) if way in known else len(known), "" if way in known else way)


def flags(rows: Sequence[Row], task: str) -> list[bool]:
    """Return the right answers of all seeds, one behind the other."""
    return [flag == "1" for row in sorted(rows, key=lambda row: row["seed"]) for flag in row["right"][task]]


def accuracy(rows: Sequence[Row], tasks: Sequence[str]) -> float:
    return mean(mean(flags(rows, task)) for task in tasks)


def spread(rows: Sequence[Row], tasks: Sequence[str]) -> float:
    """Return half the range over the seeds."""
    values = [accuracy([row], tasks) for row in rows]
    return (max(values) - min(values)) / 2


def bits(rows: Sequence[Row], language: str) -> float:
    return mean(row["bits_per_byte"][language] for row in rows)


def holm(values: Sequence[float]) -> list[bool]:
    """Return which of several p values are significant together at LEVEL (Holm 1979)."""
    significant = [False] * len(values)
    for rank, place in enumerate(sorted(range(len(values)), key=lambda place: values[place])):
        if values[place] > LEVEL / (len(values) - rank):
            break
        significant[place] = True
    return significant


def paired(first: Sequence[Row], second: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Return the rows of the seeds that both ways have."""
    seeds = {row["seed"] for row in first} & {row["seed"] for row in second}
    return [row for row in first if row["seed"] in seeds], [row for row in second if row["seed"] in seeds]


def verdicts(cells: dict[Cell, dict[str, list[Row]]], way: str, other: str, tasks: Sequence[str]) -> dict[str, Any]:
    """Return in how many pairs of cell and task a way is significantly better or worse than another."""
    differences, values = [], []
    for ways in cells.values():
        if way not in ways or other not in ways:
            continue
        first, second = paired(ways[way], ways[other])
        for task in tasks:
            a, b = flags(first, task), flags(second, task)
            differences.append(mean(a) - mean(b))
            values.append(mcnemar(a, b))
    significant = holm(values)
    return {
        "pairs": len(values),
        "mean_difference": mean(differences) if differences else 0.0,
        "better": sum(d > 0 and s for d, s in zip(differences, significant, strict=True)),
        "worse": sum(d < 0 and s for d, s in zip(differences, significant, strict=True)),
    }


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *lines))


def percent(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


def name_of(cell: Cell) -> str:
    width, strength, regime = cell
    return f"d {width}, {strength}, {regime}"


def table_of_accuracy(cells: dict[Cell, dict[str, list[Row]]], tasks: Sequence[str]) -> str:
    ways = sorted({way for found in cells.values() for way in found}, key=order)
    lines = []
    for way in ways:
        line = [way]
        for found in cells.values():
            rows = found.get(way)
            several = f" ±{percent(spread(rows, tasks))}" if rows and len(rows) > 1 else ""
            line.append(f"{percent(accuracy(rows, tasks))}{several}" if rows else "")
        lines.append(line)
    return markdown(["way", *map(name_of, cells)], lines)


def table_of_bits(cells: dict[Cell, dict[str, list[Row]]]) -> str:
    ways = sorted({way for found in cells.values() for way in found}, key=order)
    lines = []
    for way in ways:
        found = (ways_of.get(way) for ways_of in cells.values())
        lines.append([way, *(f"{bits(rows, 'ru'):.2f} / {bits(rows, 'en'):.2f}" if rows else "" for rows in found)])
    return markdown(["way", *map(name_of, cells)], lines)


def table_of_tests(cells: dict[Cell, dict[str, list[Row]]], tasks: Sequence[str], against: str) -> str:
    ways = sorted({way for found in cells.values() for way in found} - {against}, key=order)
    lines = []
    for way in ways:
        found = verdicts(cells, way, against, tasks)
        pairs = [paired(f[way], f[against]) for f in cells.values() if way in f and against in f]
        ru = [bits(a, "ru") - bits(b, "ru") for a, b in pairs]
        lines.append(
            [
                way,
                f"{found['mean_difference']:+.3f}",
                f"{found['better']} of {found['pairs']}",
                f"{found['worse']} of {found['pairs']}",
                f"{mean(ru):+.3f}",
            ]
        )
    header = ["way", f"accuracy − {against}'s", "significantly better", "significantly worse", "Russian bits per byte"]
    return markdown(header, lines)


def table_of_drift(rows: Sequence[Row]) -> str:
    drifts: dict[tuple[int, str], list[dict[str, float]]] = defaultdict(list)
    for row in rows:
        if row["way"] == BEST and row["regime"] == "new":
            drifts[row["width"], row["strength"]].append(row["drift"])
    lines = [
        [f"d {width}, {strength}", *(percent(mean(d[role] for d in found)) for role in found[0])]
        for (width, strength), found in sorted(drifts.items())
    ]
    return markdown(["models", "input embeddings", "output embeddings"], lines)


def plot(path: Path, cells: dict[Cell, dict[str, list[Row]]], tasks: Sequence[str]) -> None:
    """Draw accuracy over Russian bits per byte: a panel for each cell, filled marks for kept shared rows."""
    columns = len(cells) // 2
    figure = Figure(figsize=(3.1 * columns, 6.4), layout="constrained")
    colours = dict(zip(METHODS, ("tab:red", "tab:orange", "tab:green", "tab:blue"), strict=True))
    for place, (cell, ways) in enumerate(sorted(cells.items(), key=lambda item: (item[0][2] == "all", item[0]))):
        axes = figure.add_subplot(2, columns, place + 1)
        for way, rows in ways.items():
            method = way.removesuffix(" + kept")
            if method not in (OLD, MEAN, *METHODS):
                continue
            colour = colours.get(method, "black")
            mark = {OLD: "*", MEAN: "s"}.get(method, "o")
            face = colour if way.endswith("kept") or method in (OLD, MEAN) else "white"
            x, y = bits(rows, "ru"), accuracy(rows, tasks)
            label = way if place == 0 else None
            axes.plot(x, y, mark, color=colour, markerfacecolor=face, markersize=9 if mark == "*" else 7, label=label)
        axes.set_title(name_of(cell), fontsize=10)
        axes.set_ylim(0, 1)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if place % columns == 0:
            axes.set_ylabel("accuracy, mean of tasks")
        if place >= columns:
            axes.set_xlabel("Russian bits per byte")
    figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)


def filled(page: str, blocks: dict[str, str]) -> str:
    """Return the page with other contents between `<!-- name -->` and `<!-- end -->`."""
    for name, block in blocks.items():
        pattern = rf"(<!-- {name} -->\n).*?(\n<!-- end -->)"
        page, count = re.subn(pattern, lambda match, block=block: match[1] + block + match[2], page, flags=re.DOTALL)
        assert count == 1, f"{PAGE} has {count} blocks {name}"
    return page


def blocks_of(results: dict[str, Any]) -> dict[str, str]:
    cells, tasks = cells_of(results["rows"]), list(results["prompts"])
    core = {cell: {way: rows for way, rows in ways.items() if order(way)[0] < 10} for cell, ways in cells.items()}
    kept = {
        cell: {way: rows for way, rows in ways.items() if way == MEAN or way.endswith("+ kept")}
        for cell, ways in core.items()
    }
    ideas = {
        cell: {way: rows for way, rows in ways.items() if way == BEST or order(way)[0] == 10 and PROBE not in way}
        for cell, ways in cells.items()
    }
    probes = {
        cell: {way: rows for way, rows in ways.items() if way in (PAPER, f"{PAPER} + kept") or PROBE in way}
        for cell, ways in cells.items()
        if any(PROBE in way for way in ways)
    }
    return {
        "drift": table_of_drift(results["rows"]),
        "accuracy": table_of_accuracy(core, tasks),
        "bits": table_of_bits(core),
        "tests": table_of_tests(core, tasks, BEST),
        "kept": table_of_tests(kept, tasks, f"{BEST} + kept"),
        "ideas": table_of_tests(ideas, tasks, BEST),
        "probes": table_of_accuracy(probes, tasks),
        "probes bits": table_of_bits(probes),
    }


def calibrated_blocks(results: dict[str, Any]) -> dict[str, str]:
    """Return the blocks about calibration: each calibrated model against its start and against the old vocabulary."""
    measured = {(row["width"], row["strength"], row["regime"]) for row in results["rows"]}
    cells = {cell: ways for cell, ways in cells_of(results["rows"]).items() if cell in measured}
    tasks = list(results["prompts"])
    lines = []
    for way in sorted({row["way"] for row in results["rows"] if row["way"].endswith(AFTER)}, key=order):
        line = [way]
        for other in (start_of(way), OLD):
            found = verdicts(cells, way, other, tasks)
            pairs = [paired(ways[way], ways[other]) for ways in cells.values() if way in ways and other in ways]
            ru = mean(bits(a, "ru") - bits(b, "ru") for a, b in pairs)
            counts = f"{found['better']} / {found['worse']} of {found['pairs']}"
            line += [f"{found['mean_difference']:+.3f}", counts, f"{ru:+.3f}"]
        lines.append(line)
    header = [
        *("model", "accuracy − its start's", "better / worse", "bits per byte"),
        *("accuracy − old vocabulary's", "better / worse", "bits per byte"),
    ]
    return {
        "calibrated accuracy": table_of_accuracy(cells, tasks),
        "calibrated bits": table_of_bits(cells),
        "calibrated tests": markdown(header, lines),
    }


def differences(first: Sequence[Row], again: Sequence[Row], tasks: Sequence[str]) -> str:
    """Return how far a rerun's rows are from those of the first run, and whether the same methods win."""

    def key(row: Row) -> tuple[Any, ...]:
        return tuple(row[name] for name in ("width", "seed", "strength", "regime", "way"))

    def winners(rows: Iterable[Row]) -> dict[tuple[Any, ...], str]:
        methods = [row for row in rows if row["way"].removesuffix(" + kept") in METHODS]
        return {key(row)[:-1]: row["way"] for row in sorted(methods, key=lambda row: accuracy([row], tasks))}

    known = {key(row): row for row in first}
    pairs = [(known[key(row)], row) for row in again]
    right = max(abs(accuracy([a], tasks) - accuracy([b], tasks)) for a, b in pairs)
    read = max(abs(a["bits_per_byte"][name] - b["bits_per_byte"][name]) for a, b in pairs for name in ("ru", "en"))
    before, after = winners(a for a, _ in pairs), winners(again)
    return (
        f"{len(pairs)} rows measured again, {sum(a == b for a, b in pairs)} of them exactly the same\n"
        f"farthest apart: accuracy {right:.4f}, bits per byte {read:.5f}\n"
        f"the same method wins in {sum(before[cell] == after[cell] for cell in after)} of {len(after)} kinds of model"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--again", type=Path, metavar="FILE", help="compare a rerun's results; write nothing")
    parser.add_argument("--show", action="store_true", help="print the tables, write nothing")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    results = json.loads(arguments.results.read_text())
    if arguments.again:
        print(differences(results["rows"], json.loads(arguments.again.read_text())["rows"], list(results["prompts"])))
        return
    blocks = blocks_of(results) | calibrated_blocks(json.loads(CALIBRATED.read_text()))
    if arguments.show:
        print("\n\n".join(f"{name}\n{block}" for name, block in blocks.items()))
        return
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), blocks), encoding="utf-8")
    plot(PAGE.with_suffix(".png"), cells_of(results["rows"]), list(results["prompts"]))
    print(PAGE)


if __name__ == "__main__":
    main()
