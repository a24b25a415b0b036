"""Compose the quickstart's instruct model with a LoRA donor at several scales of the body, and compare the results.

    python recipes/donor/sweep.py [METHOD]

METHOD is how the donor's tables are propagated (default: delta). Everything is written to recipes/donor/out.
"""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
QUICKSTART = HERE.parent / "quickstart"
DIVISORS = {"0.5": 2.0, "0.57": 1.75, "1": 1.0, "1.75": 1 / 1.75, "2": 0.5}
"""Factor of the donor's body update → the recipe's s, by which the update is divided."""


def run(*arguments: str | Path) -> None:
    """Run a lepmerge command."""
    done = subprocess.run([sys.executable, "-m", "lepmerge", *arguments])
    if done.returncode:
        raise SystemExit(f"lepmerge {arguments[0]} ended with {done.returncode}: run it again to continue")


def composed(method: str, factor: str) -> Path:
    """Return the composed model. Factor 0 leaves the instruct body as it is."""
    target = HERE / "out" / f"{method}-{factor}"
    models = {"base": QUICKSTART / "base", "instruct": QUICKSTART / "instruct", "donor": HERE / "out/donor"}
    variables = {**models, "method": method, "s": DIVISORS.get(factor, 1.0), "name": "quickstart"}
    overrides = [f"variables.{key}={value}" for key, value in variables.items()]
    overrides += [f"output.path={target}", *(["steps.1.expression=current"] if factor == "0" else [])]
    settings = [part for override in overrides for part in ("--set", override)]
    run("run", HERE / "conversion-1.75.yaml", *settings, "--device", "cpu", "--overwrite", "-q")
    return target


def main(method: str = "delta") -> None:
    run("train", HERE / "train.yaml", "--device", "cpu")
    models = [f"{factor}={composed(method, factor)}" for factor in ("0", *DIVISORS)]
    measured = ("--text", f"ru={QUICKSTART / 'heldout_ru.txt'}", "--task", QUICKSTART / "task.jsonl", "--copies", "0")
    report = HERE / "out" / f"{method}.html"
    run("compare", f"instruct={QUICKSTART / 'instruct'}", *models, *measured, "--device", "cpu", "--html", report)


if __name__ == "__main__":
    main(*sys.argv[1:])
