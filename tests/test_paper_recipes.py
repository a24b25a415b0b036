"""recipes/paper: the numbers are the paper's, and `lepmerge plan` accepts all 21 recipes unchanged."""

import csv
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import paper_models
import pico
import pytest

from lepmerge.comparison.darumeru import COLUMNS
from lepmerge.merge.recipe import load_recipe
from lepmerge.training.config import load_train_config

PAPER = Path(__file__).parent.parent / "recipes/paper"
MODELS = {  # folder → name in the paper's tables
    "mistral-7b": "Mistral-7B",
    "llama-3-8b": "LLaMa-3-8B",
    "openchat-3.5": "OpenChat-3.5",
    "llama-3-8b-instruct": "LLaMa-3-8B (instruct)",
}
BASE_OF = {"openchat-3.5": "mistral-7b", "llama-3-8b-instruct": "llama-3-8b"}
HUB = {
    "mistral-7b": "mistralai/Mistral-7B-v0.1",
    "llama-3-8b": "meta-llama/Meta-Llama-3-8B",
    "openchat-3.5": "openchat/openchat-3.5-0106",
    "llama-3-8b-instruct": "meta-llama/Meta-Llama-3-8B-Instruct",
}
RECIPES = [
    (model, vocabulary, method)
    for model, vocabularies in {
        "openchat-3.5": ("bpe", "unigram", "extended"),
        "llama-3-8b-instruct": ("bpe", "unigram", "extended", "optimized"),
    }.items()
    for vocabulary in vocabularies
    for method in ("swap", "overlap", "conversion")
]
TRAININGS = list(dict.fromkeys((BASE_OF[model], vocabulary) for model, vocabulary, _ in RECIPES))
SIZES = {
    ("mistral-7b", "bpe"): 32000,
    ("mistral-7b", "unigram"): 32000,
    ("mistral-7b", "extended"): 55328,
    ("llama-3-8b", "bpe"): 128000,
    ("llama-3-8b", "unigram"): 128000,
    ("llama-3-8b", "extended"): 174816,
    ("llama-3-8b", "optimized"): 114504,
}
OLD_SIZES = {"mistral-7b": 32000, "llama-3-8b": 128256}
FEW = 24
"""The small setting has this many times fewer tokens."""


@pytest.fixture(scope="module")
def rows() -> dict[tuple[str, str, str, str], dict[str, str]]:
    """Return (table, model, variant, method) → a row of the paper."""
    with (files("lepmerge.comparison") / "darumeru_paper.csv").open(encoding="utf-8", newline="") as file:
        return {
            (row["table"], row["model"], row["variant"].lower(), row["method"].lower()): row
            for row in csv.DictReader(file)
        }


def shown(row: dict[str, str]) -> list[str]:
    """Return the scores of a row as the files have them: .587 for 0.587."""
    return [re.sub("^0", "", row[column]) for column in COLUMNS]


def named(row: dict[str, str]) -> str:
    return ", ".join(f"{name} {score}" for name, score in zip(COLUMNS.values(), shown(row), strict=True))


def test_the_numbers_are_the_papers(rows) -> None:
    table = (PAPER / "README.md").read_text()
    assert len(RECIPES) == 21 and len(TRAININGS) == 7
    for model, vocabulary, method in RECIPES:
        row, file = rows["3", MODELS[model], vocabulary, method], f"{model}/{vocabulary}-{method}.yaml"
        assert (PAPER / file).read_text().splitlines()[0] == f"# The paper's Table 3: {named(row)}"
        assert f"\n| [{file}]({file}) | {' | '.join(shown(row))} |\n" in table
    for model, vocabulary in TRAININGS:
        row, file = rows["2", MODELS[model], vocabulary, ""], f"{model}/{vocabulary}.train.yaml"
        symbols = row["symbols_per_token"]
        first = f"# The paper's Table 2: {symbols} symbols per token, {named(row)}"
        assert (PAPER / file).read_text().splitlines()[0] == first
        assert f"\n| [{file}]({file}) | {symbols} | {' | '.join(shown(row))} |\n" in table
    assert table.count(".yaml) | ") == len(RECIPES) + len(TRAININGS)
    assert f"| {' | '.join(COLUMNS.values())} |" in table
    there = {path.relative_to(PAPER).as_posix() for path in PAPER.glob("*/*.yaml")}
    expected = {f"{model}/{vocabulary}-{method}.yaml" for model, vocabulary, method in RECIPES}
    expected |= {f"{model}/{vocabulary}.train.yaml" for model, vocabulary in TRAININGS}
    chats = {"self_calibration/train.yaml", "tuning/train.yaml"}
    assert there == expected | chats | {f"{model}/model.yaml" for model in MODELS}


@pytest.mark.parametrize(
    ("folder", "rate", "epochs", "batch", "block", "decay", "tables"),
    [("self_calibration", 2.5e-5, 1, 64, 8096, 0.1, "both"), ("tuning", 5e-5, 1, 128, 4096, 0.05, "output")],
)
def test_training_on_chats_has_the_papers_values(folder, rate, epochs, batch, block, decay, tables) -> None:
    config = load_train_config(PAPER / folder / "train.yaml")
    assert config.objective == "chat" and [source.kind for source in config.data] == ["chat"]
    assert (config.learning_rate, config.epochs, config.batch_size, config.block_size) == (rate, epochs, batch, block)
    assert (config.weight_decay, config.warmup_steps, config.schedule, config.seed) == (decay, 16, "cosine", 1337)
    assert (config.train.tables, config.train.rows) == (tables, "all")
    assert config.resolve(config.model.path).resolve() == PAPER / "out/openchat-3.5-bpe-conversion"
    assert config.lora is not None and config.lora.dropout == 0
    expected = (8, 1, "first_last") if folder == "self_calibration" else (32, 16, "all")
    assert (config.lora.rank, config.lora.alpha, config.lora.layers) == expected


@pytest.mark.parametrize(("model", "vocabulary", "method"), RECIPES, ids=str)
def test_each_recipe_says_what_its_name_says(model: str, vocabulary: str, method: str) -> None:
    recipe = load_recipe(PAPER / model / f"{vocabulary}-{method}.yaml")
    (step,) = recipe.steps
    assert (step.base, step.adapted, step.method, step.keep_shared_rows) == ("base", "adapted", method, False)
    base = BASE_OF[model]
    assert recipe.models["base"].path == HUB[base] and recipe.models["instruct"].path == HUB[model]
    assert recipe.trainings()["adapted"].resolve() == PAPER / base / f"{vocabulary}.train.yaml"
    assert recipe.resolve(recipe.output.path).resolve() == PAPER / f"out/{model}-{vocabulary}-{method}"
    config = load_train_config(recipe.trainings()["adapted"])
    assert config.model.path == HUB[base] and config.target.resolve() == PAPER / f"runs/{base}-{vocabulary}"
    assert config.resolve(config.tokenizer).resolve() == PAPER / f"tokenizers/{base}-{vocabulary}"
    assert [config.resolve(source.path).resolve() for source in config.data] == [PAPER / "corpus"]
    command = rf"lepmerge tokenizer .*--vocab-size {SIZES[base, vocabulary]} .*-o tokenizers/{base}-{vocabulary}$"
    assert re.search(command, (PAPER / "README.md").read_text(), re.MULTILINE)


@dataclass(frozen=True)
class Setting:
    """A copy of recipes/paper with finished trainings, and with local models named like those on the Hub."""

    folder: Path
    fewer: int


FAMILIES = {
    "mistral-7b": paper_models.Family(byte_level=False, special=("<unk>", "<s>", "</s>")),
    "llama-3-8b": paper_models.Family(byte_level=True, special=tuple(f"<|special_{n}|>" for n in range(256))),
}
ADDED = {"openchat-3.5": ("<|end_of_turn|>", "<|pad_0|>"), "llama-3-8b-instruct": ()}
"""Tokens of the instruct model that its base lacks."""


def made(folder: Path, fewer: int) -> Setting:
    shutil.copytree(PAPER, folder, dirs_exist_ok=True)
    hub = folder / "hub"
    for instruct, base in BASE_OF.items():
        specs = tokenizers(base, fewer)
        old = specs.pop("old")
        paper_models.save_model(hub / HUB[base], old)
        paper_models.save_model(hub / HUB[instruct], paper_models.with_added(old, ADDED[instruct]))
        for vocabulary, new in specs.items():
            config = load_train_config(folder / base / f"{vocabulary}.train.yaml")
            trained = paper_models.save_model(config.target, new, body=False)
            (trained / "lepmerge_train.json").write_text(json.dumps({"config": config.plain()}))
    for model in MODELS:
        for owner in hub.iterdir():
            (folder / model / owner.name).symlink_to(owner)
    return Setting(folder, fewer)


def tokenizers(base: str, fewer: int) -> dict[str, dict[str, Any]]:
    """Return the old tokenizer.json and those of the vocabularies: a part of the old merges, then Cyrillic ones."""
    family = FAMILIES[base]
    size, largest = OLD_SIZES[base] // fewer, max(SIZES.values()) // fewer
    old = family.merges(size - len(family.special) - len(family.first), letters=paper_models.LATIN, seed=0)
    specs = {"old": family.bpe(size, old)}
    for kept, vocabularies in {0.4: ("bpe", "unigram"), 0.5: ("optimized",), 1.0: ("extended",)}.items():
        known = old[: int(kept * len(old))]
        merges = family.merges(largest, letters=paper_models.CYRILLIC, seed=1, known=known)
        for vocabulary in vocabularies:
            if (base, vocabulary) in SIZES:
                make = family.unigram if vocabulary == "unigram" else family.bpe
                specs[vocabulary] = make(SIZES[base, vocabulary] // fewer, merges)
    return specs


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    yield made(tmp_path_factory.mktemp("small"), FEW)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    folder = tmp_path_factory.mktemp("full")
    yield made(folder, 1)
    shutil.rmtree(folder)


def planned(setting: Setting, model: str, vocabulary: str, method: str) -> None:
    result = pico.command("plan", setting.folder / model / f"{vocabulary}-{method}.yaml", "--json")
    assert result.exit_code == 0, result.stderr
    plan = json.loads(result.stdout)
    base = BASE_OF[model]
    added = len(ADDED[model])
    new = SIZES[base, vocabulary] // setting.fewer
    rows = {"before": OLD_SIZES[base] // setting.fewer + added, "after": new + added}
    assert plan["vocabulary_rows"] == rows
    (file,) = plan["files"]
    assert file["computed"] == list(paper_models.TABLES)
    assert file["bytes"] == pytest.approx(2 * (6.98e9 + 2 * 4096 * rows["after"]), rel=0.01)
    kinds = {reduction["kind"] for reduction in plan["reductions"]}
    assert kinds == {"drift" if method == "swap" else "least squares"} and len(plan["reductions"]) == 2
    assert plan["bytes"]["memory"] < 4 << 30
    assert not (setting.folder / "out").exists()


@pytest.mark.parametrize(("model", "vocabulary", "method"), RECIPES, ids=str)
def test_plan(small: Setting, model: str, vocabulary: str, method: str) -> None:
    planned(small, model, vocabulary, method)


def test_a_variable_set_for_one_run(small: Setting) -> None:
    """The README's `--set variables.method=delta` changes the method and the output folder."""
    file, override = small.folder / "openchat-3.5/bpe-conversion.yaml", "variables.method=delta"
    result = pico.command("plan", file, "--json", "--set", override)
    assert result.exit_code == 0, result.stderr
    assert {reduction["kind"] for reduction in json.loads(result.stdout)["reductions"]} == {"drift"}
    recipe = load_recipe(file, [override])
    assert [step.model_dump()["method"] for step in recipe.steps] == ["delta"]
    assert recipe.output.path.endswith("out/openchat-3.5-bpe-delta")


@pytest.mark.slow
@pytest.mark.parametrize(("model", "vocabulary", "method"), RECIPES, ids=str)
def test_plan_of_the_true_shapes(full: Setting, model: str, vocabulary: str, method: str) -> None:
    planned(full, model, vocabulary, method)


def test_training_on_chats_is_planned_with_its_adapter(small: Setting) -> None:
    """The number of LoRA parameters in the true shapes: rank · (inputs + outputs) of each adapted matrix."""
    model = small.folder / "out/openchat-3.5-bpe-conversion"
    model.parent.mkdir(exist_ok=True)
    model.symlink_to(small.folder / "hub/openchat/openchat-3.5-0106")
    messages = [{"role": "user", "content": "Привет!"}, {"role": "assistant", "content": "Здравствуйте."}]
    (small.folder / "self_calibration/answers").mkdir()
    for file in ("answers/chats.jsonl", "prompts.jsonl"):
        (small.folder / "self_calibration" / file).write_text(json.dumps({"messages": messages}) + "\n")
    try:
        for folder, rank, layers in (("self_calibration", 8, 2), ("tuning", 32, 32)):
            result = pico.command("train", small.folder / folder / "train.yaml", "--dry-run", "--json")
            assert result.exit_code == 0, result.stderr
            of_a_layer = 2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336)
            parameters = rank * of_a_layer * layers
            found = json.loads(result.stdout)
            assert found["lora"] == {"modules": 7 * layers, "parameters": parameters}
            assert found["memory"]["lora"] > 16 * parameters
            assert list(found["rows"]["trained"].split()) == {
                "self_calibration": ["input", "0-1334,", "output", "0-1334"], "tuning": ["output", "0-1334"],
            }[folder]  # fmt: skip
    finally:
        shutil.rmtree(model.parent)


def test_where_nothing_is_trained_yet_the_plan_is_that_of_the_training(small: Setting, tmp_path: Path) -> None:
    for name in ("corpus", "held_out"):
        (small.folder / name).mkdir(exist_ok=True)
        (small.folder / name / "ru.txt").write_text("\n\n".join(pico.RUSSIAN), encoding="utf-8")
    shutil.copytree(small.folder / "runs/mistral-7b-bpe", small.folder / "tokenizers/mistral-7b-bpe")
    (small.folder / "runs/mistral-7b-bpe").rename(tmp_path / "moved")
    try:
        result = pico.command("plan", small.folder / "openchat-3.5/bpe-swap.yaml")
    finally:
        (tmp_path / "moved").rename(small.folder / "runs/mistral-7b-bpe")
    assert result.exit_code == 0, result.stderr
    assert "adapted is not trained yet" in result.stdout and "compute" in result.stdout
