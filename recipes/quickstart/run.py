"""Runs the quickstart: trains the embeddings, runs the recipes, shows what each way of changing the vocabulary does.

python recipes/quickstart/run.py
"""

import subprocess
import sys
from pathlib import Path

import lepmerge

HERE = Path(__file__).parent
METHODS = ("swap", "overlap", "conversion", "delta")


def run(*arguments: str | Path) -> None:
    """Run a command of lepmerge."""
    done = subprocess.run([sys.executable, "-m", "lepmerge", *arguments])
    if done.returncode:
        raise SystemExit(f"lepmerge {arguments[0]} ended with {done.returncode}: run this again to go on from there")


def main() -> None:
    run("train", HERE / "train.yaml", "--device", "cpu", "--overwrite")
    folders = {"instruct": HERE / "instruct", "mean": lepmerge.load_recipe(HERE / "mean.yaml").run(overwrite=True)}
    for method in METHODS:
        overrides = [f"steps.0.method={method}", f"output.path={HERE / 'out' / method}"]
        folders[method] = lepmerge.load_recipe(HERE / "recipe.yaml", overrides).run(overwrite=True)
    models = [f"{name}={folder}" for name, folder in folders.items()]
    measured = ("--text", f"ru={HERE / 'heldout_ru.txt'}", "--task", HERE / "task.jsonl", "--copies", "0")
    run("compare", *models, *measured, "--device", "cpu", "--html", HERE / "out" / "report.html")


if __name__ == "__main__":
    main()
