"""docs/methods.md says what benchmarks/results/methods.json holds, and its statistics are right."""

import importlib.util
import json
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="the study's report draws its plot with matplotlib")
ROOT = Path(__file__).parent.parent
SPEC = importlib.util.spec_from_file_location("methods_report", ROOT / "benchmarks/methods/report.py")
assert SPEC and SPEC.loader
report = importlib.util.module_from_spec(SPEC)
sys.modules["methods_report"] = report
SPEC.loader.exec_module(report)


def test_the_page_holds_the_tables_of_the_results() -> None:
    results, calibrated = (
        json.loads((ROOT / f"benchmarks/results/{name}.json").read_text()) for name in ("methods", "calibrated")
    )
    page = (ROOT / "docs/methods.md").read_text(encoding="utf-8")
    assert report.filled(page, report.blocks_of(results) | report.calibrated_blocks(calibrated)) == page


def test_every_cell_was_measured_on_the_same_prompts() -> None:
    results = json.loads((ROOT / "benchmarks/results/methods.json").read_text())
    for row in results["rows"]:
        assert {task: len(flags) for task, flags in row["right"].items()} == results["prompts"]
    ways = {(row["width"], row["seed"], row["strength"], row["regime"], row["way"]) for row in results["rows"]}
    assert len(ways) == len(results["rows"])


def test_holm_against_its_definition() -> None:
    """A p-value is significant if it and all smaller ones are at most 5 % / (number of p-values not smaller)."""
    for values in product([0.001, 0.012, 0.02, 0.04, 0.2], repeat=4):
        ranked = sorted(values)
        passed = [all(ranked[i] <= 0.05 / (4 - i) for i in range(rank + 1)) for rank in range(4)]
        assert sum(report.holm(values)) == sum(passed)
        assert all(
            found == (value in ranked[: sum(passed)]) for value, found in zip(values, report.holm(values), strict=True)
        ) or (
            len(set(values)) < 4  # of equal values some may pass
        )


def test_a_way_that_answers_more_is_better() -> None:
    def row(way: str, seed: int, right: str) -> dict:
        return {"width": 1, "seed": seed, "strength": "s", "regime": "new", "way": way, "right": {"t": right}}

    rows = [row("a", seed, "1" * 30) for seed in (1, 2)] + [row("delta", seed, "01" * 15) for seed in (1, 2)]
    found = report.verdicts(report.cells_of(rows), "a", "delta", ["t"])
    assert found == {"pairs": 1, "mean_difference": 0.5, "better": 1, "worse": 0}
    assert report.verdicts(report.cells_of(rows), "delta", "a", ["t"])["worse"] == 1


def test_calibrated_models_are_compared_with_their_start_and_the_old_vocabulary() -> None:
    def row(way: str, right: str, ru: float) -> dict:
        cell = {
            "width": 1,
            "seed": 1,
            "strength": "s",
            "regime": None if way == "old vocabulary" else "new",
            "way": way,
        }
        return {**cell, "right": {"t": right}, "bits_per_byte": {"ru": ru, "en": 1.0}}

    rows = [
        row("old vocabulary", "1" * 30, 1.0),
        row("delta", "01" * 15, 1.5),
        row("delta, calibrated", "1" * 30, 1.25),
    ]
    table = report.calibrated_blocks({"prompts": {"t": 30}, "rows": rows})["calibrated tests"]
    (line,) = [line for line in table.splitlines() if line.startswith("| delta")]
    assert line == "| delta, calibrated | +0.500 | 1 / 0 of 1 | -0.250 | +0.000 | 0 / 0 of 1 | +0.250 |"


def test_a_rerun_is_compared_row_by_row() -> None:
    def row(way: str, right: str, ru: float) -> dict:
        cell = {"width": 1, "seed": 1, "strength": "s", "regime": "new", "way": way}
        return {**cell, "right": {"t": right}, "bits_per_byte": {"ru": ru, "en": 1.0}}

    first = [row("swap", "0111", 1.5), row("delta", "1111", 1.5)]
    assert "2 of them exactly the same" in report.differences(first, first, ["t"])
    found = report.differences(first, [row("swap", "0111", 1.5), row("delta", "0011", 1.75)], ["t"]).splitlines()
    assert found[0].startswith("2 rows measured again, 1 of them")
    assert found[1:] == [
        "farthest apart: accuracy 0.5000, bits per byte 0.25000",
        "the same method wins in 0 of 1 kinds of model",
    ]


MAKE_MODELS = """
import subprocess
import sys
from pathlib import Path

sys.path += sys.argv[1:3]
import torch, models
from fetch_text import FAMILIES, Document

torch.set_num_threads(1)
models.SIZES[32] = (64, 2, 2, 0, 3e-3, 8e-3)
quickstart, folder = Path(sys.argv[2]), Path(sys.argv[3])
paragraphs = (quickstart / "heldout_ru.txt").read_text(encoding="utf-8").split("\\n\\n")
texts = object.__new__(models.Texts)
texts.training = [Document(family, "ru", "a", paragraphs[place::5]) for place, family in enumerate(FAMILIES)]
for name, draws in (("first", 0), ("again", 3)):
    made = models.Models(folder / name, texts, width=32, seed=1)
    made.base
    torch.rand(draws)  # what a process did before must not matter
    made.instruct("weak")
"""


@pytest.mark.slow
def test_models_hang_on_their_seed_alone(tmp_path: Path) -> None:
    study, quickstart = ROOT / "benchmarks/methods", ROOT / "recipes/quickstart"
    done = subprocess.run(
        [sys.executable, "-c", MAKE_MODELS, study, quickstart, tmp_path], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for name in ("base", "instruct-weak"):
        first, again = (tmp_path / run / "d32-seed1" / name / "model.safetensors" for run in ("first", "again"))
        assert first.read_bytes() == again.read_bytes(), name
