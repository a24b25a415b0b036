"""The report and the model card say what was done, and hold what a reader needs to do it again."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pico
import pytest
import yaml
from huggingface_hub import ModelCard

import lepmerge
from lepmerge.comparison.card import check_cards, write_card
from lepmerge.comparison.compare import Settings, compare
from lepmerge.comparison.loading import load_model
from lepmerge.output.provenance import listed_in_cards

COMMIT = "0123456789abcdef0123456789abcdef01234567"
STEPS = [{"op": "propagate_embeddings", "base": "base", "adapted": "adapted", "method": "conversion"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, setting) -> Path:
    return pico.run_recipe(tmp_path_factory.mktemp("card"), setting, STEPS)


def test_card_is_valid_on_the_hub(folder: Path) -> None:
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "transformers" and "lepmerge" in card.data.tags
    front = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
    assert front == {"library_name": "transformers", "tags": ["lepmerge", "merge", "lep"]}  # no Hub id, no language


def test_card_and_report_name_no_folder_of_the_machine(folder: Path) -> None:
    text = (folder / "README.md").read_text() + (folder / "lepmerge_report.json").read_text()
    assert str(folder.parent.parent.parent) not in text and "/" not in yaml.safe_load(_recipe(folder))["models"]["base"]
    assert json.loads((folder / "lepmerge_report.json").read_text())["inputs"]["base"]["reference"] == "base"


def test_front_matter_names_hub_ids_and_the_languages_of_the_inputs(tmp_path: Path, setting, monkeypatch) -> None:
    hub = tmp_path / "hub" / "models--someone--base"
    shutil.copytree(setting["base"], hub / "snapshots" / COMMIT)
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    adapted = Path(shutil.copytree(setting["adapted"], tmp_path / "adapted"))
    (adapted / "README.md").write_text("---\nlanguage: [ru, en]\n---\n# Adapted\n")
    (hub / "snapshots" / COMMIT / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\n")
    models = {**setting, "base": "someone/base", "adapted": adapted}
    out = pico.run_recipe(tmp_path / "run", models, STEPS)
    card = ModelCard.load(out / "README.md")
    assert card.data.base_model == ["someone/base"] and card.data.language == ["ru", "en"] and not card.data.datasets
    (adapted / "README.md").write_text("---\nbase_model: someone/else\ntags: 5\n---\n")  # by somebody else
    assert listed_in_cards([adapted], "base_model", only_ours=True) == []
    ours = "---\nlanguage: ru\ntags: [lepmerge]\nbase_model: someone/foundation\ndatasets: [someone/texts]\n---\n"
    (adapted / "README.md").write_text(ours)
    again = pico.run_recipe(tmp_path / "again", models, STEPS, language="uk")
    card = ModelCard.load(again / "README.md")
    assert card.data.base_model == ["someone/base", "someone/foundation"]
    assert card.data.language == ["uk", "ru", "en"] and card.data.datasets == ["someone/texts"]
    assert "models:\n  adapted: adapted\n  base: someone/base\n" in (out / "README.md").read_text()


def _recipe(folder: Path) -> str:
    return (folder / "README.md").read_text().split("```yaml\n")[1].split("```")[0]


def test_the_recipe_in_the_card_can_be_run_again(tmp_path: Path, folder: Path, setting) -> None:
    recipe = _recipe(folder)
    assert yaml.safe_load(recipe)["steps"][0]["method"] == "conversion"
    (tmp_path / "again.yaml").write_text(recipe)
    where = [f"models.{name}={path}" for name, path in setting.items()]
    again = pico.run_file(tmp_path / "again.yaml", [f"output.path={tmp_path / 'again'}", *where], device="cpu")
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_report(folder: Path, setting) -> None:
    report = json.loads((folder / "lepmerge_report.json").read_text())
    for table in report["tables"]:
        rows = table["rows"]
        metrics = table["metrics"]
        assert rows["exact"] and rows["decomposed"] and metrics["rank"] == 16
        assert 0 < metrics["drift"] and 0 < metrics["relative_residual"] <= 1.01 and metrics["condition"] >= 1
    assert set(report["inputs"]) == set(setting)
    assert {"python", "torch", "transformers"} <= set(report["versions"]) and report["lepmerge"] == lepmerge.__version__
    record = json.loads((folder / "lepmerge_run.json").read_text())
    assert 0 < record["cpu_seconds"] <= (os.cpu_count() or 1) * record["seconds"] + 0.1
    assert "seconds" not in (folder / "lepmerge_report.json").read_text()


def test_the_card_shows_the_values_of_the_report(folder: Path, setting) -> None:
    report, card = json.loads((folder / "lepmerge_report.json").read_text()), (folder / "README.md").read_text()
    lines = card.split("## Embeddings\n\n")[1].split("\n\n")[0].split("\n")
    head, rule, *rows = ([cell.strip() for cell in line[1:-1].split("|")] for line in lines)
    assert set(rule) == {"---"} and len(rows) == len(report["tables"]) == 2
    for row, table in zip(rows, report["tables"], strict=True):
        metrics = {key.replace("_", " "): value for key, value in table["metrics"].items() if key != "solver"}
        made = {f"{key.replace('_', ' ')} rows": value for key, value in table["rows"].items()}
        names = {"operation": table["operation"], "table": table["table"], "method": "`conversion`"}
        values = {
            key: f"{value:.4g}" if isinstance(value, float) else str(value)
            for key, value in {**metrics, **made}.items()
        }
        assert dict(zip(head, row, strict=True)) == {**names, **values}
    sizes = {name: sum(path.stat().st_size for path in model.glob("*.safetensors")) for name, model in setting.items()}
    inputs = [f"- `{name}`: {name} (1 files, {size:,} bytes)" for name, size in sizes.items()]
    assert sorted(card.split("## Inputs\n\n")[1].split("\n\n")[0].split("\n")) == sorted(inputs)
    assert "## Notes" not in card and report["notes"] == [] == list(report["not_finite"])


def test_content_hashes_only_when_asked_for(tmp_path: Path, folder: Path, setting) -> None:
    assert not json.loads((folder / "lepmerge_report.json").read_text())["content_hashed"]
    recipe = pico.write_recipe(tmp_path / "recipe.yaml", **setting)
    hashed = pico.run_file(recipe, device="cpu", hash=True)
    inputs = json.dumps(json.loads((hashed / "lepmerge_report.json").read_text())["inputs"])
    for model in setting.values():
        for path in model.glob("*.safetensors"):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            assert digest in inputs and digest not in (folder / "lepmerge_report.json").read_text()


def test_compare_writes_metrics_into_the_card(tmp_path: Path, folder: Path, setting) -> None:
    """The command with --card is in README.md: test_readme.py."""
    out = Path(shutil.copytree(folder, tmp_path / "adapted-ru"))
    before = (out / "README.md").read_text()
    for name in ("ru", "uk"):
        (tmp_path / f"{name}.txt").write_text("\n\n".join(pico.RUSSIAN * (20 if name == "ru" else 30)))
    models = [load_model(setting["instruct"], name="old"), load_model(out, name="new")]
    settings = Settings(max_bytes=3000, copies=0, speed=False)
    texts = {name: [str(tmp_path / f"{name}.txt")] for name in ("ru", "uk")}
    results = compare(models, texts, settings=settings)
    for _ in range(2):  # the second comparison replaces what the first one wrote
        write_card(check_cards(models, None)["new"], results, "new")
    card = ModelCard.load(out / "README.md")
    assert card.data.model_name == "adapted-ru" and "lepmerge" in card.data.tags and card.data.eval_results
    keys = ("bits_per_byte", "symbols_per_token", "tokens_per_word")
    old, new = (results["models"][name]["texts"] for name in ("old", "new"))
    assert {(each.dataset_name, each.metric_type): each.metric_value for each in card.data.eval_results} == {
        (text, key): round(new[text][key], 4) for text in texts for key in keys
    }
    assert {each.dataset_type for each in card.data.eval_results} == {"custom"}
    shown = [round(each["ru"]["bits_per_byte"], 4) for each in (old, new)]
    assert f"| ru | bits per byte | {shown[0]} | {shown[1]} |" in card.text
    assert f"`lepmerge compare` {lepmerge.__version__} on the first 3,000 bytes of each text, in " in card.text
    whole = {**results, "settings": {**results["settings"], "max_bytes": None}}
    write_card(out / "README.md", whole, "new")
    assert f"`lepmerge compare` {lepmerge.__version__} on whole texts, in " in (out / "README.md").read_text()
    assert card.text.count("## Evaluation") == 1 and str(tmp_path) not in card.content
    assert card.text.partition("<!--")[0].strip() == before.split("---\n", 2)[2].strip()


def test_a_changed_card_does_not_make_an_output_incomplete(tmp_path: Path, setting) -> None:
    out = pico.run_recipe(tmp_path, setting, STEPS)
    with (out / "README.md").open("a") as file:
        file.write("What people should know.\n")
    before = pico.contents(out)
    pico.run_recipe(tmp_path, setting, STEPS)
    assert pico.contents(out) == before


@pytest.mark.parametrize(("models", "part"), [(["made"], "another model"), (["made", "base"], "leave out this model")])
def test_only_cards_of_lepmerge_are_changed(
    tmp_path: Path, folder: Path, setting, models: list[str], part: str
) -> None:
    paths = {"made": folder, "base": setting["base"]}
    result = pico.command("compare", *(paths[name] for name in models), "--text", tmp_path / "no.txt", "--card")
    pico.assert_one_line_error(result, 1, part)
