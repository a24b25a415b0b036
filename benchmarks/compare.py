"""Compare results of two commits: every figure that both have, and the new one / the old one.

    python compare.py OLD NEW      two JSON files, two folders of them, or two git commits (their benchmarks/results)
    python compare.py HEAD~20 .    a folder and a commit may stand side by side

Single runs are left out. Machines and versions that differ are named above the figures, because times of different
machines cannot be compared.
"""

import argparse
import json
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from measure import RESULTS, table

LEFT_OUT = ("runs", "raw", "machine", "load_average_at_start", "load_average_at_end")


def results(place: str) -> dict[str, dict[str, Any]]:
    """Return benchmark → result of a file, a folder (or the results of a checkout), or a commit."""
    path = Path(place)
    if path.is_dir():
        found = [*path.glob("*.json"), *path.glob("benchmarks/results/*.json")]
        texts = [each.read_text(encoding="utf-8") for each in found]
    elif path.exists():
        texts = [path.read_text(encoding="utf-8")]
    else:
        names = _git(place, "ls-tree", "--name-only", place, "results/").split()
        texts = [_git(place, "show", f"{place}:./{name}") for name in names if name.endswith(".json")]
    parsed = (json.loads(text) for text in texts)
    return {result["benchmark"]: result for result in parsed}


def _git(place: str, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=RESULTS.parent, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{place}: neither a file, a folder nor a commit: {done.stderr.strip()}")
    return done.stdout


def leaves(value: Any, left_out: Sequence[str], place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (place, value) for everything in a result that is no mapping and no list. left_out: keys to skip."""
    if isinstance(value, dict):
        for key, each in value.items():
            if key not in left_out:
                yield from leaves(each, left_out, f"{place}.{key}" if place else key)
    elif isinstance(value, list):
        for number, each in enumerate(value):
            name = each["aim"] if isinstance(each, dict) and "aim" in each else number
            yield from leaves(each, left_out, f"{place}[{name}]")
    else:
        yield place, value


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def figures(result: dict[str, Any]) -> dict[str, float]:
    """Return place → number for every number of a result that is not a single run."""
    return {place: value for place, value in leaves(result, LEFT_OUT) if is_number(value)}


def compared(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Return the lines about one benchmark."""
    lines = [f"{new['benchmark']}: {old['git_commit'][:7]} → {new['git_commit'][:7]}"]
    for key in ("machine", "versions"):
        lines += [
            f"  {name}: {old[key].get(name)} → {now}" for name, now in new[key].items() if old[key].get(name) != now
        ]
    before, after = figures(old), figures(new)
    rows = [
        [place, before[place], value, value / before[place] if before[place] else None]
        for place, value in after.items()
        if place in before and value != before[place]
    ]
    lines.append(table(rows, ["figure", "old", "new", "new / old"]) if rows else "  no figure differs")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old")
    parser.add_argument("new")
    options = parser.parse_args()
    old, new = results(options.old), results(options.new)
    both = sorted(old.keys() & new.keys())
    if not both:
        raise SystemExit(f"{options.old} and {options.new} have no benchmark in common")
    print("\n\n".join(compared(old[name], new[name]) for name in both))
    if one_sided := sorted(old.keys() ^ new.keys()):
        print(f"\nonly in one of them: {', '.join(one_sided)}")


if __name__ == "__main__":
    main()
