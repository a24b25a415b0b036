"""The report and the model card say what was done, and hold what a reader needs to do it again."""

import hashlib
import json
from pathlib import Path

import pico
import pytest
import yaml
from huggingface_hub import ModelCard

import lepmerge

STEPS = [{"op": "propagate_embeddings", "base": "base", "adapted": "adapted", "method": "conversion"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, setting) -> Path:
    return pico.run_recipe(tmp_path_factory.mktemp("card"), setting, STEPS)


def test_card_is_valid_on_the_hub(folder: Path) -> None:
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "transformers" and "lepmerge" in card.data.tags
    assert card.data.base_model[0] == "instruct"


def test_the_recipe_in_the_card_can_be_run_again(tmp_path: Path, folder: Path, setting) -> None:
    text = (folder / "README.md").read_text()
    recipe = text.split("```yaml\n")[1].split("```")[0]
    assert yaml.safe_load(recipe)["steps"][0]["method"] == "conversion"
    (tmp_path / "again.yaml").write_text(recipe)
    again = pico.run_file(tmp_path / "again.yaml", [f"output.path={tmp_path / 'again'}"], device="cpu")
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
    assert "seconds" in json.loads((folder / "lepmerge_run.json").read_text())
    assert "seconds" not in (folder / "lepmerge_report.json").read_text()


def test_content_hashes_only_when_asked_for(tmp_path: Path, folder: Path, setting) -> None:
    assert not json.loads((folder / "lepmerge_report.json").read_text())["content_hashed"]
    recipe = pico.write_recipe(tmp_path / "recipe.yaml", **setting)
    hashed = pico.run_file(recipe, device="cpu", hash=True)
    inputs = json.dumps(json.loads((hashed / "lepmerge_report.json").read_text())["inputs"])
    for model in setting.values():
        for path in model.glob("*.safetensors"):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            assert digest in inputs and digest not in (folder / "lepmerge_report.json").read_text()
