"""Calibrate the quickstart's models with different settings, one cell of a grid after another, and measure each.

    python benchmarks/calibration_grid.py [CELL ...]

A cell is recipes/quickstart/calibrate.yaml with some overrides. Its metrics: accuracy of the task, bits per byte of
held-out Russian and of an English text (the GPL), CPU seconds of the training on one thread. Neither the task nor the
held-out text is trained on. If cells are named, results/calibration_grid.json keeps the others.
"""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from inputs import QUICKSTART
from measure import Report, arguments_of

import lepmerge
from lepmerge.comparison.decoding import together
from lepmerge.comparison.loading import load_model
from lepmerge.comparison.task import read_task, solving, task_metrics
from lepmerge.comparison.texts import measure_texts, read_text, text_of
from lepmerge.training.config import load_train_config
from lepmerge.training.run import train

TEXT = f"{{path: {QUICKSTART / 'train_ru.jsonl.gz'}, weight: 0.5}}"
GENERAL = ["{text}", "Перескажи:\\n{text}", "О чём это?\\n{text}", "Переведи на английский:\\n{text}"]
PROMPTS = ", ".join(
    f'{{path: {QUICKSTART / "train_ru.jsonl.gz"}, cut: 320, weight: 0.25, prompt: "{prompt}"}}' for prompt in GENERAL
)
CELLS: dict[str, list[str]] = {
    "default": [],
    "weight 1": ["distill.weight=1"],
    "weight 4": ["distill.weight=4"],
    "answers weigh 1": ["distill.answer_weight=1"],
    "answers weigh 5": ["distill.answer_weight=5"],
    "two epochs": ["epochs=2"],
    "from mean": [f"model={QUICKSTART / 'out/mean'}"],
    "from conversion": [f"model={QUICKSTART / 'out/conversion'}", "train.rows=all"],
    "prompts of other kinds": [f"data=[{TEXT}, {PROMPTS}]"],
    "plain text only": [f"data=[{{path: {QUICKSTART / 'train_ru.jsonl.gz'}, weight: 1.75}}]"],
}


def measured(folder: Path, reference: list[bool] | None) -> tuple[dict[str, Any], list[bool]]:
    """Return accuracy, p against the reference and bits per byte of a model, and which answers are right."""
    model = load_model(folder)
    (right,) = together(model, [solving(model, read_task(QUICKSTART / "task.jsonl"))])
    english = (QUICKSTART / "licenses/GPL-2").read_text(encoding="utf-8").split("\n\n")
    read = [
        read_text("ru", [str(QUICKSTART / "heldout_ru.txt")], piece_bytes=500),
        text_of("en", english, piece_bytes=500),
    ]
    bits = {name: round(found.bits_per_byte, 4) for name, found in measure_texts(model, read).items()}
    return {**task_metrics(right, reference), "bits_per_byte": bits}, right


def calibrated(overrides: list[str], work: Path) -> tuple[Path, float]:
    """Return the complete model of a cell, and the CPU seconds of its training if it ran just now without interruption.

    An interrupted training is resumed.
    """
    config = load_train_config(QUICKSTART / "calibrate.yaml", [*overrides, f"output={work / 'tables'}"])
    began = time.process_time()
    train(config)
    seconds = time.process_time() - began
    recipe = {
        "models": {"student": str(config.resolve(config.model.path or "")), "tables": str(work / "tables")},
        "start": "student",
        "steps": [{"op": "arithmetic", "tensors": "embeddings", "expression": "tables"}],
        "output": {"path": str(work / "model")},
    }
    (work / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return lepmerge.run_plan(lepmerge.make_plan(lepmerge.load_recipe(work / "recipe.yaml")), device="cpu"), seconds


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("cells", nargs="*", metavar="CELL", help=f"of {', '.join(CELLS)}; default: all")
    options = parser.parse_args()
    torch.set_num_threads(1)
    report = Report("calibration_grid", options)
    is_part = options.cells and report.path.exists()
    cells: dict[str, Any] = json.loads(report.path.read_text())["cells"] if is_part else {}
    if not (QUICKSTART / "out/report.html").exists():
        subprocess.run([sys.executable, QUICKSTART / "run.py"], check=True)
    reference, right = measured(QUICKSTART / "instruct", None)
    for name in options.cells or CELLS:
        work = QUICKSTART / "out/grid" / name.replace(" ", "-")
        if (work / "tables/lepmerge_train.json").exists():
            shutil.rmtree(work)  # an earlier measurement; only an interrupted training is continued
        work.mkdir(parents=True, exist_ok=True)
        folder, seconds = calibrated(CELLS[name], work)
        trained = json.loads((work / "tables/lepmerge_train.json").read_text())
        found, _ = measured(folder, right)
        entry = {"cpu_s": round(seconds), "steps": trained["steps"], "tokens": trained["tokens"], **found}
        cells |= {"instruct": reference, name: {"overrides": [_relative(text) for text in CELLS[name]], **entry}}
        report.write({"cells": cells})
        print(name, json.dumps(entry), flush=True)


def _relative(text: str) -> str:
    return text.replace(f"{QUICKSTART}/", "")


if __name__ == "__main__":
    main()
