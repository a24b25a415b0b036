"""The commands in the documents work exactly as they are written."""

import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from glob import glob
from pathlib import Path
from typing import Any

import paper_models
import pico
import pytest
import yaml
from huggingface_hub import ModelCard

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(text: str = README) -> list[str]:
    """Return the lepmerge commands of the shell blocks, comments left out."""
    lines = [line for block in blocks("sh", text) for line in block.splitlines()]
    return [line for line in lines if shlex.split(line, comments=True)[:1] == ["lepmerge"]]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a clone has after `make quickstart`, as far as commands read it; the training is cut short."""
    folder = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT / "recipes", folder / "recipes", ignore=shutil.ignore_patterns("out", "work"))
    config = folder / "recipes/quickstart/train.yaml"
    text = config.read_text().replace("epochs: 1.25", "max_tokens: 6K")
    config.write_text(text.replace("ru: heldout_ru.txt", "ru: {path: heldout_ru.txt, limit: 4KB}"))
    task = folder / "recipes/quickstart/task.jsonl"
    task.write_text("".join(task.read_text().splitlines(keepends=True)[:20]))
    subprocess.run([sys.executable, "-m", "lepmerge", "train", config, "--device", "cpu", "-q"], check=True, cwd=folder)
    return folder


DOCS = {path.name: path for path in sorted((ROOT / "docs").glob("*.md")) if path.name != "tutorial.md"}
"""The tutorial's commands depend on one another: test_tutorial.py."""


def test_commands(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert any(line.startswith("lepmerge run") for line in commands())
    monkeypatch.chdir(checkout)
    run(commands())
    card = ModelCard.load(checkout / "out/delta/README.md")  # `compare --card` wrote into it
    assert {"bits_per_byte", "accuracy"} <= {each.metric_type for each in card.data.eval_results or ()}


@pytest.mark.parametrize("page", [name for name, path in DOCS.items() if commands(path.read_text())])
def test_commands_of_the_docs(checkout: Path, page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkout)
    run(commands(DOCS[page].read_text()))


def run(lines: list[str]) -> None:
    """Run commands in the current folder and in this process: a start of Python takes longer than most of them."""
    for line in lines:
        words = [found for word in shlex.split(line, comments=True) for found in (sorted(glob(word)) or [word])]
        done = pico.command(*words[1:])
        assert done.exit_code == 0, f"{line}\n{done.stderr}\n{done.exception!r}"


def test_vocabularies_of_the_paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of recipes/paper with small models and sizes in place of the real ones, in their order."""
    small = {
        "mistralai/Mistral-7B-v0.1": "sentencepiece",
        "meta-llama/Meta-Llama-3-8B": "byte_level",
        "32000": "600", "55328": "440", "128000": "600", "174816": "380", "114504": "345", "50%": "98%",
    }  # fmt: skip
    pico.save_model(tmp_path / "sentencepiece", pico.sentencepiece(pico.ENGLISH, 400))
    pico.save_model(tmp_path / "byte_level", pico.byte_level(pico.ENGLISH, 330))
    (tmp_path / "corpus").mkdir()
    text = (ROOT / "recipes/quickstart/heldout_ru.txt").read_text(encoding="utf-8")[:30_000]
    (tmp_path / "corpus" / "ru.txt").write_text(text, encoding="utf-8")
    found = commands((ROOT / "recipes/paper/README.md").read_text())
    assert len(found) == 7
    monkeypatch.chdir(tmp_path)
    for line in found:
        for old, new in small.items():
            line = line.replace(old, new)
        run([line])
    assert len(list((tmp_path / "tokenizers").iterdir())) == 7


def quickstart(folder: Path = ROOT) -> dict[str, Any]:
    return runpy.run_path(str(folder / "recipes/quickstart/run.py"))


def test_the_table_of_gains_holds_the_recorded_results() -> None:
    recorded = json.loads((ROOT / "benchmarks/results/quickstart.json").read_text())
    assert quickstart()["page"](recorded["models"]) == README, "run: python recipes/quickstart/run.py --record"


def test_a_row_of_the_table_of_gains() -> None:
    """Every value is that of `lepmerge compare` or of the training's own record, and has its column."""
    names = ("instruct", "mean", "delta", "calibrated")
    row = {"tokens_per_word": 2.345, "symbols_per_token": 3.456, "characters_per_second": 1234.5,
           "context_characters": 2345.6, "bits_per_byte": 1.23456, "accuracy": 0.78951}  # fmt: skip
    rows = {name: {**row, "training_cpu_s": cost} for name, cost in zip(names, (0, 0, 61.7, None), strict=True)}
    head, rule, *lines = quickstart()["table"](rows)
    assert rule.count("---") == head.count("|") - 1 == 8
    for line, cost in zip(lines, ("0", "0", "62", ""), strict=True):
        assert [cell.strip() for cell in line.strip("|").split("|")][1:] == [
            "2.35", "3.46", "1,234", "2,346", "1.235", ".790", cost,
        ]  # fmt: skip


@pytest.mark.slow
def test_the_quickstart_records_its_table(checkout: Path, tmp_path: Path) -> None:
    """`run.py --record` from its first training to the README, with short trainings and texts."""
    shutil.copytree(checkout / "recipes", tmp_path / "recipes")
    for file in ("README.md", "benchmarks/measure.py"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    held_out, config = (tmp_path / "recipes/quickstart" / name for name in ("heldout_ru.txt", "calibrate.yaml"))
    held_out.write_text(held_out.read_text(encoding="utf-8")[:5000], encoding="utf-8")
    config.write_text(config.read_text().replace("warmup_steps: 20", "warmup_steps: 1\nmax_tokens: 6K"))
    program = tmp_path / "recipes/quickstart/run.py"
    done = subprocess.run([sys.executable, program, "--record"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "benchmarks/results/quickstart.json").read_text())["models"]
    assert list(rows) == ["instruct", "mean", "swap", "overlap", "conversion", "delta", "calibrated"]
    table = "\n".join(quickstart(tmp_path)["table"](rows))
    assert done.stdout.rstrip().endswith(table) and table in (tmp_path / "README.md").read_text()
    for name, output in (("delta", "adapted"), ("calibrated", "calibration")):
        record = json.loads((tmp_path / "recipes/quickstart/out" / output / "lepmerge_run.json").read_text())
        assert rows[name]["training_cpu_s"] == record["cpu_seconds"] > 0
    old, new = rows["instruct"], rows["calibrated"]
    assert (
        new["symbols_per_token"] > old["symbols_per_token"] and new["training_cpu_s"] != rows["delta"]["training_cpu_s"]
    )
    assert new["context_characters"] == pytest.approx(512 * new["symbols_per_token"])


def test_python(checkout: Path) -> None:
    (program,) = blocks("python")
    done = subprocess.run([sys.executable, "-c", program], cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_recipe_shown_is_a_recipe(tmp_path: Path) -> None:
    from lepmerge.merge.recipe import load_recipe

    (shown,) = blocks("yaml")
    (tmp_path / "recipe.yaml").write_text(shown)
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert recipe.steps[0].op == yaml.safe_load(shown)["steps"][0]["op"]


def test_files_that_the_readme_names_are_there() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    tree = README.split("    lepmerge/\n")[1].split("    eval/")[0]
    folders = {path.name for path in (ROOT / "lepmerge").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert set(re.findall(r"^ +(\w+)/ ", tree, re.M)) == folders


@pytest.mark.parametrize("name", ["mistral-7b", "llama-3-8b"])
def test_trainings_of_the_paper_are_estimated(tmp_path: Path, name: str) -> None:
    """`--dry-run` on a checkpoint with the real shapes, stored as a sparse file without data."""
    shutil.copytree(ROOT / "recipes/paper", tmp_path / "paper")
    model = pico.save_model(tmp_path / "model", pico.byte_level(pico.ENGLISH, 400))
    rows = {"mistral-7b": 32000, "llama-3-8b": 128256}[name]
    paper_models.save_hole(model / "model.safetensors", paper_models.shapes(rows))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | paper_models.config(rows)))
    pico.save_tokenizer(pico.byte_level([*pico.RUSSIAN, *pico.ENGLISH], 600), tmp_path / "tokenizer")
    for folder in ("corpus", "held_out"):
        (tmp_path / "paper" / folder).mkdir()
        (tmp_path / "paper" / folder / "ru.txt").write_text("\n\n".join(pico.RUSSIAN))
    result = pico.command(
        "train", tmp_path / "paper" / name / "bpe.train.yaml", "--dry-run", "--json", "--device", "cpu",
        "--set", f"model={model}", "--set", f"tokenizer={tmp_path / 'tokenizer'}",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["tokens_per_step"] == 256 * 1024 and found["steps"] == 1 and found["tokens"] > 0
    assert found["memory"]["body"] == pytest.approx(2 * 6.98e9, rel=0.01)  # 7 billion weights outside the tables
    assert found["flop_per_token"] == pytest.approx(4 * 6.98e9, rel=0.1)
    assert found["memory"]["optimizer"] == 2 * found["memory"]["gradients"]
