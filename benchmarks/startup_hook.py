"""Measure how much the import hook of `lm_eval --tasks darumeru` slows down every other Python program.

python startup_hook.py [--runs 400]

`python -c pass` is started alternately with a site-packages folder that has the hook, with the same folder without it,
and, if setuptools is installed, with the hook of setuptools (distutils-precedence.pth). The CPU seconds per start vary
by more than a hook costs, so the result is the median of many differences.
"""

import importlib.util
import random
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from measure import Report, aim, arguments_of, show_aims, table

HOOK = Path(__file__).parent.parent / "eval"
FILES = ("lepmerge_lm_eval.py", "lepmerge_lm_eval.pth", "lepmerge_lm_eval.start")
WITHOUT, OURS, PEER = "without", "with the hook", "with setuptools' hook"


def hook_files() -> dict[str, list[Path]]:
    """Return name of a variant → files in its site-packages folder."""
    ways = {WITHOUT: [], OURS: [HOOK / name for name in FILES]}
    found = importlib.util.find_spec("_distutils_hack")
    if found and found.origin:
        package = Path(found.origin).parent
        ways[PEER] = [package, package.parent / "distutils-precedence.pth"]
    return ways


def cpu_seconds(command: list[str]) -> float:
    """Run a command and return its CPU seconds (user + system)."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def interval(differences: list[float], draws: int = 2000) -> tuple[float, float]:
    """Return the 95 % bootstrap confidence interval of the median."""
    draw = random.Random(0)
    medians = sorted(median(draw.choices(differences, k=len(differences))) for _ in range(draws))
    return medians[int(0.025 * draws)], medians[int(0.975 * draws)]


def main() -> None:
    options = arguments_of(__doc__, runs=400).parse_args()
    report = Report("startup_hook", options)
    with tempfile.TemporaryDirectory() as folder:
        commands = {}
        for number, (way, paths) in enumerate(hook_files().items()):
            environment = Path(folder) / str(number)
            subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
            (site,) = environment.glob("lib/python*/site-packages")
            (site / "nothing.pth").write_text("import sys\n")
            for path in paths:
                (shutil.copytree if path.is_dir() else shutil.copy)(path, site / path.name)
            subprocess.run([sys.executable, "-m", "compileall", "-q", site], check=True)  # as pip does
            commands[way] = [str(environment / "bin" / "python"), "-c", "pass"]
        raw: dict[str, list[float]] = {way: [] for way in commands}
        for number in range(options.runs + 5):
            for way in list(commands)[:: 1 if number % 2 else -1]:
                seconds = cpu_seconds(commands[way])
                if number >= 5:  # the first starts only warm up the file cache
                    raw[way].append(seconds)
    differences = {
        way: [1000 * (b - a) for a, b in zip(raw[WITHOUT], seconds, strict=True)]
        for way, seconds in raw.items()
        if way != WITHOUT
    }
    mid = {way: 1000 * median(seconds) for way, seconds in raw.items()}
    print(table([[way, value] for way, value in mid.items()], ["python -c pass", "CPU ms"]))
    intervals = {way: interval(found) for way, found in differences.items()}
    for way, (low, high) in intervals.items():
        print(f"{way}: {median(differences[way]):+.3f} ms, 95 % interval {low:.3f} to {high:.3f}")
    aims = [aim("the hook, CPU milliseconds a start", median(differences[OURS]), 0.15)]
    if PEER in differences:
        ratio = median(differences[OURS]) / median(differences[PEER])
        aims.append(aim("the hook's time divided by that of setuptools'", ratio, 1.0))
    show_aims(aims)
    report.write(
        {
            "pairs": options.runs,
            "median_cpu_ms": {way: round(value, 3) for way, value in mid.items()},
            "median_difference_ms": {way: round(median(found), 4) for way, found in differences.items()},
            "interval_95_ms": {way: [round(end, 4) for end in ends] for way, ends in intervals.items()},
            "differences_ms": {way: [round(value, 3) for value in found] for way, found in differences.items()},
            "aims": aims,
        }
    )


if __name__ == "__main__":
    main()
