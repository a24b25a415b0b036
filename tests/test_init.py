"""lepmerge init: a project from config and tokenizer alone, with values that fit, and commands that are its own."""

import json
import re
import shutil
from pathlib import Path

import families
import pico
import pytest
import yaml

from lepmerge.merge.recipe import load_recipe
from lepmerge.projects.languages import CODES_OF, REQUESTS, language_of
from lepmerge.tokenization.script import allowed_tokens
from lepmerge.training.config import load_train_config

LLAMA = "meta-llama/Llama-3.2-1B-Instruct"


@pytest.fixture
def models(tmp_path: Path, setting, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, which holds `base` and `instruct` without weights."""
    for name in ("base", "instruct"):
        shutil.copytree(setting[name], tmp_path / name, ignore=shutil.ignore_patterns("*.safetensors"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    families.save_hub(tmp_path / "hub", [LLAMA])
    for name in ("huggingface_hub.constants", "huggingface_hub._snapshot_download.constants"):
        monkeypatch.setattr(f"{name}.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def commands(folder: Path) -> list[str]:
    return yaml.safe_load((folder / "project.yaml").read_text(encoding="utf-8"))["commands"]


def test_a_project_has_all_files_and_they_belong_together(models: Path) -> None:
    result = pico.command("init", "instruct", "my project", "--language", "uk", "--tokens", "96K", "--text", "uk.txt")
    assert result.exit_code == 0 and result.stderr == "", result.stderr
    project = models / "my project"
    assert sorted(path.name for path in models.iterdir()) == ["base", "instruct", "my project"]
    assert sorted(path.name for path in project.iterdir()) == sorted(
        ["README.md", "project.yaml", "train.yaml", "recipe.yaml", "calibrate.yaml"]
    )
    vocabulary, train, run, calibrate, compare = commands(project)
    assert vocabulary == "tokenizer extend ../base ../uk.txt --add 1000 --script Cyrillic --output out/vocabulary"
    assert (train, run) == ("train train.yaml", "run recipe.yaml")
    assert calibrate == "train calibrate.yaml --full out/instruct-uk"
    assert compare.startswith("compare original=../instruct adapted=out/instruct-uk --text uk=text/held_out")
    training, calibration = (load_train_config(project / name) for name in ("train.yaml", "calibrate.yaml"))
    recipe = load_recipe(project / "recipe.yaml")
    assert training.target == project / "out/adapted" and training.tokenizer == "out/vocabulary"
    assert training.max_tokens == calibration.max_tokens == 96_000 and training.train.rows == "new"
    assert recipe.trainings() == {"adapted": project / "train.yaml"} and recipe.models["base"].path == "../base"
    assert calibration.model.path == recipe.output.path == "out/start"
    assert calibration.teacher.path == recipe.models["instruct"].path == "../instruct"
    assert calibration.data[1].prompt == "Перекажи коротко:\n{text}"
    assert "my project/text/held_out   other text" in result.stdout and "text/train" not in result.stdout
    assert "96,000 for training, 96,000 for calibration\n" in result.stdout
    for shown in (result.stdout, (project / "README.md").read_text(encoding="utf-8")):
        assert re.findall(r"^ +lepmerge ((?!chain).*)$", shown, re.MULTILINE) == commands(project)


def test_without_a_base_the_model_alone_is_adapted(models: Path) -> None:
    shutil.rmtree(models / "base")
    result = pico.command("init", "instruct", "project", "--language", "de", "--json")
    found = json.loads(result.stdout)
    assert found["base"] is None and found["commands"] == commands(models / "project")
    vocabulary, run, calibrate, _ = found["commands"]
    assert vocabulary == "tokenizer extend ../instruct text/train --add 1000 --output out/vocabulary"
    assert (run, calibrate) == ("run recipe.yaml", "train calibrate.yaml --full out/instruct-de")
    (step,) = load_recipe(models / "project/recipe.yaml").steps
    assert step.op == "swap_vocabulary" and not (models / "project/train.yaml").exists()


def test_init_says_where_text_goes_and_what_is_long(models: Path) -> None:
    shown = pico.command("init", "instruct", "project").stdout
    assert "\nFirst put text into:\n  project/text/train   for training: a few MB" in shown
    assert "all the text once for training, 500,000 for calibration (hours on a CPU; --tokens 50K" in shown
    both = pico.command("init", "instruct", "other", "--text", "a.txt", "--held-out", "b.txt").stdout
    assert "First put" not in both and "\nRun all steps:\n  lepmerge chain other\n" in both


def test_a_link_to_a_model_gives_the_project_its_name(models: Path) -> None:
    (models / "small").symlink_to(models / "instruct")
    assert "--full out/small-ru" in pico.command("init", "small", "project").stdout


def test_the_base_is_found_by_name_or_card_and_no_base_is_obeyed(hub: Path, tmp_path: Path) -> None:
    def base(name: str, *options: str) -> str | None:
        result = pico.command("init", LLAMA, tmp_path / name, "--memory", "16GB", "--json", *options)
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)["base"]

    assert base("by-name") == "meta-llama/Llama-3.2-1B"
    assert base("none", "--no-base") is None
    (hub / "models--meta-llama--Llama-3.2-1B").rename(hub / "models--someone--foundation")
    assert base("lost") is None
    card = hub / "models--meta-llama--Llama-3.2-1B-Instruct/snapshots" / families.COMMIT / "README.md"
    card.write_text("---\nbase_model:\n- someone/foundation\n---\n")
    assert base("by-card") == "someone/foundation"
    card.unlink()
    assert base("given", "--base", "someone/foundation") == "someone/foundation"


def test_less_memory_gives_a_smaller_body(hub: Path, tmp_path: Path) -> None:
    def training(memory: str) -> tuple[object, str]:
        folder = tmp_path / memory
        assert pico.command("init", LLAMA, folder, "--memory", memory, "-q").output == ""
        config = load_train_config(folder / "calibrate.yaml")
        assert config.batch_size * config.block_size == 32 * 1024
        return config.micro_batch, config.precision.body

    assert training("80GB") == ("auto", "bf16")
    assert training("7GB") == ("auto", "nf4")
    assert training("5GB") == (1, "nf4")  # with shorter blocks
    refused = pico.command("init", LLAMA, tmp_path / "small", "--memory", "2GB")
    pico.assert_one_line_error(refused, 2, "--memory 2GB", "needs about", "choose a smaller model")
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize(
    ("arguments", "exit_code", "part"),
    [
        (["base", "new"], 1, "--base base"),
        (["instruct", "new", "--language", "Ru"], 2, "did you mean ru?"),
        (["instruct", "new", "--language", "english"], 2, "ISO 639-1"),
        (["instruct", "base"], 1, "base is not empty: choose another folder"),
        (["instruct", "instruct/config.json/x"], 1, "config.json"),
        (["instruct", "new", "--base", "wide"], 2, "other shapes"),
        (["quantized", "new"], 1, "is quantized"),
        (["wordpiece", "new"], 1, "lepmerge tokenizer train --like wordpiece"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_refusals_write_nothing(models: Path, arguments: list[str], exit_code: int, part: str, english) -> None:
    config = json.loads((models / "instruct/config.json").read_text())
    for name, change in (
        ("wide", {"intermediate_size": 8}),
        ("quantized", {"quantization_config": {}}),
        ("wordpiece", {}),
    ):
        shutil.copytree(models / "instruct", models / name)
        (models / name / "config.json").write_text(json.dumps(config | change))
    spec = json.loads((models / "wordpiece/tokenizer.json").read_text())
    words = {"type": "WordPiece", "unk_token": "<s>", "continuing_subword_prefix": "##", "max_input_chars_per_word": 99}
    spec["model"] = {**words, "vocab": spec["model"]["vocab"]}
    (models / "wordpiece/tokenizer.json").write_text(json.dumps(spec))
    before = pico.tree(models)
    pico.assert_one_line_error(pico.command("init", *arguments), exit_code, part)
    assert pico.tree(models) == before


def test_every_language_has_scripts_that_unicode_knows() -> None:
    codes = [code for each in CODES_OF.values() for code in each.split()]
    assert len(codes) == len(set(codes)) and set(REQUESTS) <= set(codes)
    for scripts in CODES_OF:
        allowed_tokens(scripts)
    assert language_of("ja").scripts == ("Han", "Hiragana", "Katakana") and language_of("de").scripts == ()
