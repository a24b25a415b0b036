"""Runs the quickstart: trains the embeddings, runs the recipes, prints what each way of changing the vocabulary does.

python recipes/quickstart/run.py
"""

import subprocess
import sys
from pathlib import Path

from evaluate import print_table
from transformers.utils.logging import disable_progress_bar

import lepmerge

HERE = Path(__file__).parent
METHODS = ("swap", "overlap", "conversion", "delta")


def main() -> None:
    train = [sys.executable, "-m", "lepmerge", "train", str(HERE / "train.yaml"), "--device", "cpu", "--overwrite"]
    subprocess.run(train, check=True)
    folders = {"instruct, old vocabulary": HERE / "instruct"}
    folders["mean of old rows"] = lepmerge.load_recipe(HERE / "mean.yaml").run(overwrite=True)
    for method in METHODS:
        overrides = [f"steps.0.method={method}", f"output.path={HERE / 'out' / method}"]
        folders[method] = lepmerge.load_recipe(HERE / "recipe.yaml", overrides).run(overwrite=True)
    disable_progress_bar()
    print_table(folders)


if __name__ == "__main__":
    main()
