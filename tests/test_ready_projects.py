"""Projects of published models: the snapshots are what init writes, and all ten configurations dry-run and plan."""

import json
import shutil
from pathlib import Path

import families
import paper_models
import pico
import pytest
import yaml

from lepmerge.training.loader import skeleton

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hub cache of all configurations, whose weights are sparse files of the true shapes."""
    cache = tmp_path_factory.mktemp("hub")
    families.save_hub(cache, list(families.FAMILIES))
    for model, (_, base, _) in families.FAMILIES.items():
        folder = cache / f"models--{model.replace('/', '--')}/snapshots" / families.COMMIT
        network = skeleton(folder, name=model)
        shapes = {name: tuple(weight.shape) for name, weight in network.named_parameters()}
        paper_models.save_hole(folder / "model.safetensors", shapes)
        if base:
            owner = model.split("/")[0]
            other = cache / f"models--{owner}--{base}/snapshots" / families.COMMIT
            paper_models.save_hole(other / "model.safetensors", shapes)
    return cache


@pytest.mark.parametrize("model", families.FAMILIES)
def test_a_project_dry_runs_and_plans(hub: Path, tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("huggingface_hub.constants", "huggingface_hub._snapshot_download.constants"):
        monkeypatch.setattr(f"{name}.HF_HUB_CACHE", str(hub))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    config, base, billions = families.FAMILIES[model]
    memory = families.SNAPSHOTS.get(model, "200GB")
    project = tmp_path / families.project_name(model)
    families.write_project(project, model)
    if model in families.SNAPSHOTS:
        ready = families.READY / project.name
        again = "written by tests/families.py: run it again"
        assert pico.contents(project) == pico.contents(ready), again
    for name in ("train", "held_out"):
        (project / "text" / name).mkdir(parents=True)
        (project / "text" / name / "ru.txt").write_text("\n\n".join(pico.RUSSIAN), encoding="utf-8")
    monkeypatch.chdir(project)
    steps = yaml.safe_load((project / "project.yaml").read_text())["commands"]
    words = steps[0].split()
    words[words.index("--add") + 1] = "30"
    assert pico.command(*words, "-q").exit_code == 0
    assert ("train.yaml" in {path.name for path in project.iterdir()}) == bool(base)
    if base:
        dry = pico.command("train", "train.yaml", "--dry-run", "--json", "--device", "cpu")
        assert dry.exit_code == 0, dry.stderr
        found = json.loads(dry.stdout)
        tables = 1 + found["rows"]["trained"].count(", ")
        text = config.get("text_config", config)
        rows = text["vocab_size"] * text["hidden_size"]
        assert found["memory"]["body"] == pytest.approx(2e9 * billions - 2 * tables * rows, rel=0.01)
    plan = pico.command("plan", "recipe.yaml", "--json")
    assert plan.exit_code == 0, plan.stderr
    planned = json.loads(plan.stdout)
    assert planned["vocabulary_rows"]["after"] < text_rows(config)
    assert planned["bytes"]["written"] > 1e9 * billions
    start = ("--set", f"model={model}", "--set", "tokenizer=out/vocabulary", "--memory", memory)
    fit = pico.command("train", "calibrate.yaml", "--dry-run", "--json", "--device", "cuda", *start)
    assert fit.exit_code == 0 or "no such device" in fit.stderr, fit.stderr
    chain = pico.command("chain", project, "--dry-run", "--json")
    assert [step["state"] for step in json.loads(chain.stdout)["steps"]] == ["to run"] * len(steps)
    shutil.rmtree(project)


def text_rows(config: dict) -> int:
    return config.get("text_config", config)["vocab_size"]
