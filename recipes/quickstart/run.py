"""Run the quickstart: train the embeddings, run the recipes, and show what each method for the new vocabulary does.

python recipes/quickstart/run.py             # trains only what is not trained yet
python recipes/quickstart/run.py --record    # trains anew, and writes the table of README.md and its results
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lepmerge
from lepmerge.commands.compare import show
from lepmerge.comparison.report import write_report

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
README, BENCHMARKS = ROOT / "README.md", ROOT / "benchmarks"
METHODS = ("swap", "overlap", "conversion", "delta")
TRAININGS = {"delta": "adapted", "calibrated": "calibration"}
"""Model → the output folder of the last training that it needs."""
TITLES = {
    "instruct": "instruct, old vocabulary",
    "mean": "new vocabulary, untrained (mean of old rows)",
    "delta": "+ embeddings trained on the base, propagated (`delta`)",
    "calibrated": "+ calibrated with the old instruct model as teacher",
}
HEADER = (
    "| model | tokens per word | characters per token | characters per second | characters in the context "
    "| bits per byte | task accuracy | training, CPU s |"
)
Row = Mapping[str, Any]


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


def make_models() -> dict[str, Path]:
    """Train what is not trained yet, and return name → folder of every model."""
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
    return folders


def compared(folders: Mapping[str, Path]) -> dict[str, Any]:
    """Return what `lepmerge compare` finds on the held-out text and the task."""
    models = [f"{name}={folder}" for name, folder in folders.items()]
    measured = ["--text", f"ru={HERE / 'heldout_ru.txt'}", "--task", str(HERE / "task.jsonl"), "--copies", "0"]
    command = [sys.executable, "-m", "lepmerge", "compare", *models, *measured, "--device", "cpu", "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE)
    if done.returncode:
        raise SystemExit(f"lepmerge compare ended with {done.returncode}")
    return json.loads(done.stdout)


def rows_of(results: Mapping[str, Any]) -> dict[str, Row]:
    """Return model → its values in the table."""
    return {
        name: {
            **{key: model["texts"]["ru"][key] for key in ("tokens_per_word", "symbols_per_token", "bits_per_byte")},
            "context_characters": model["texts"]["ru"]["context_characters"],
            "characters_per_second": model["texts"]["ru"]["generation"]["characters_per_second"],
            "accuracy": model["task"]["accuracy"],
            "training_cpu_s": training_cost(HERE / "out" / TRAININGS[name]) if name in TRAININGS else 0,
        }
        for name, model in results["models"].items()
    }


def training_cost(folder: Path) -> float | None:
    """Return the CPU seconds of a training, of all threads; None if an older version of lepmerge ran it."""
    return json.loads((folder / "lepmerge_run.json").read_text()).get("cpu_seconds")


def table(rows: Mapping[str, Row]) -> Iterator[str]:
    """Yield the lines of the table in README.md."""
    yield HEADER
    yield "|---" * HEADER.count(" | ") + "|---|"
    for name, title in TITLES.items():
        row = rows[name]
        cost = row["training_cpu_s"]
        cells = [
            f"{row['tokens_per_word']:.2f}",
            f"{row['symbols_per_token']:.2f}",
            f"{row['characters_per_second']:,.0f}",
            f"{row['context_characters']:,.0f}",
            f"{row['bits_per_byte']:.3f}",
            f"{row['accuracy']:.3f}".removeprefix("0"),
            "" if cost is None else f"{cost:.0f}",
        ]
        yield f"| {title} | {' | '.join(cells)} |"


def page(rows: Mapping[str, Row]) -> str:
    """Return README.md with these rows in its table."""
    text = README.read_text(encoding="utf-8")
    pattern = re.compile(rf"^{re.escape(HEADER)}\n(?:\|.*\n)+", re.MULTILINE)
    assert len(pattern.findall(text)) == 1, f"{README} has no table, or more than one, with the head: {HEADER}"
    return pattern.sub(lambda _: "".join(f"{line}\n" for line in table(rows)), text)


def record(results: Mapping[str, Any]) -> None:
    """Write benchmarks/results/quickstart.json, and its rows into README.md."""
    sys.path.append(str(BENCHMARKS))
    from measure import Report

    rows = rows_of(results)
    Report("quickstart").write({"threads": results["threads"], "models": rows})
    README.write_text(page(rows), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--record", action="store_true", help="train anew, write README.md's table and its results")
    options = parser.parse_args()
    if options.record:
        shutil.rmtree(HERE / "out", ignore_errors=True)
    results = compared(make_models())
    show(results)
    write_report(HERE / "out" / "report.html", results)
    print(HERE / "out" / "report.html")
    print("\nThe table of README.md with these results:\n")
    print("\n".join(table(rows_of(results))))
    if options.record:
        record(results)


if __name__ == "__main__":
    main()
