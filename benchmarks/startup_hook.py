"""What the import hook behind `lm_eval --tasks darumeru` costs every other Python program: `python -c pass`.

python startup_hook.py [--pairs 400]

Pairs of starts, in turn: with a folder of site packages that has the hook, and with the same folder without it. The
CPU seconds of a start vary by more than the hook takes, so the median of many differences counts.
"""

import argparse
import random
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from measure import Report, aim, show_aims, table

HOOK = Path(__file__).parent.parent / "eval"
FILES = ("lepmerge_lm_eval.py", "lepmerge_lm_eval.pth", "lepmerge_lm_eval.start")
WAYS = ("without", "with the hook")


def cpu_seconds(command: list[str]) -> float:
    """Run a command; return its CPU seconds, user and system."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def interval(differences: list[float], draws: int = 2000) -> tuple[float, float]:
    """Return the 95 % interval of the median, by the bootstrap."""
    draw = random.Random(0)
    medians = sorted(median(draw.choices(differences, k=len(differences))) for _ in range(draws))
    return medians[int(0.025 * draws)], medians[int(0.975 * draws)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=400)
    options = parser.parse_args()
    report = Report("startup_hook")
    with tempfile.TemporaryDirectory() as folder:
        commands = {}
        for name in WAYS:
            environment = Path(folder) / name.split()[0]
            subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
            (site,) = environment.glob("lib/python*/site-packages")
            (site / "nothing.pth").write_text("import sys\n")
            if name != WAYS[0]:
                for file_name in FILES:
                    shutil.copy(HOOK / file_name, site)
                subprocess.run([sys.executable, "-m", "compileall", "-q", site], check=True)  # as pip does
            commands[name] = [str(environment / "bin" / "python"), "-c", "pass"]
        raw: dict[str, list[float]] = {name: [] for name in WAYS}
        for number in range(options.pairs + 5):
            order = WAYS if number % 2 else WAYS[::-1]
            for name in order:
                seconds = cpu_seconds(commands[name])
                if number >= 5:  # the first ones compile and fill the cache of files
                    raw[name].append(seconds)
    differences = [1000 * (b - a) for a, b in zip(raw[WAYS[0]], raw[WAYS[1]], strict=True)]
    mid = {name: 1000 * median(seconds) for name, seconds in raw.items()}
    low, high = interval(differences)
    print(table([[name, mid[name]] for name in WAYS], ["python -c pass", "CPU ms"]))
    print(f"difference: {median(differences):.3f} ms, 95 % interval {low:.3f} to {high:.3f}")
    aims = [aim("the hook, CPU milliseconds a start", median(differences), 0.15)]
    show_aims(aims)
    report.write(
        {
            "pairs": options.pairs,
            "median_cpu_ms": {name: round(value, 3) for name, value in mid.items()},
            "median_difference_ms": round(median(differences), 4),
            "interval_95_ms": [round(low, 4), round(high, 4)],
            "differences_ms": [round(value, 3) for value in differences],
            "aims": aims,
        }
    )


if __name__ == "__main__":
    main()
