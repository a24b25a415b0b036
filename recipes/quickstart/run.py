"""Run the quickstart: train the embeddings, run the recipes, and show what each method for the new vocabulary does.

python recipes/quickstart/run.py
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import lepmerge

HERE = Path(__file__).parent
METHODS = ("swap", "overlap", "conversion", "delta")


def run(*arguments: str | Path) -> None:
    """Run a lepmerge command."""
    done = subprocess.run([sys.executable, "-m", "lepmerge", *arguments])
    if done.returncode:
        raise SystemExit(f"lepmerge {arguments[0]} ended with {done.returncode}: run it again to continue")


def result_of(recipe: Path, overrides: Sequence[str] = ()) -> Path:
    """Run a recipe and return its output folder."""
    loaded = lepmerge.load_recipe(recipe, overrides)
    plan = lepmerge.make_plan(loaded, trained=lepmerge.trained_models(loaded))
    return lepmerge.run_plan(plan, overwrite=True)


def main() -> None:
    run("train", HERE / "train.yaml", "--device", "cpu", "--overwrite")
    folders = {
        "instruct": HERE / "instruct",
        "mean": result_of(HERE / "mean.yaml"),
    }
    for method in METHODS:
        as_in_the_paper = [f"steps.0.method={method}", "steps.0.keep_shared_rows=false"]
        overrides = [*as_in_the_paper, f"output.path={HERE / 'out' / method}"]
        folders[method] = result_of(HERE / "recipe.yaml", overrides)
    run("train", HERE / "calibrate.yaml", "--device", "cpu", "--overwrite")
    folders["calibrated"] = result_of(HERE / "calibrated.yaml")
    models = [f"{name}={folder}" for name, folder in folders.items()]
    measured = ("--text", f"ru={HERE / 'heldout_ru.txt'}", "--task", HERE / "task.jsonl", "--copies", "0")
    run("compare", *models, *measured, "--device", "cpu", "--html", HERE / "out" / "report.html")


if __name__ == "__main__":
    main()
