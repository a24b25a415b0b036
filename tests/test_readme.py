"""What the documents tell a user to type works as it stands there."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pico
import pytest
import yaml

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(text: str = README) -> list[str]:
    """Return the lepmerge commands of the shell blocks, comments left out."""
    lines = [line for block in blocks("sh", text) for line in block.splitlines()]
    return [line for line in lines if shlex.split(line, comments=True)[:1] == ["lepmerge"]]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What a clone has that the commands read."""
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes", ignore=shutil.ignore_patterns("out", "work"))
    return tmp_path


def test_commands(checkout: Path) -> None:
    assert any(line.startswith("lepmerge run") for line in commands())
    for line in commands():
        done = subprocess.run(line, shell=True, cwd=checkout, env=ENVIRONMENT, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stderr}"


def test_vocabularies_of_the_paper(tmp_path: Path) -> None:
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
    for line in found:
        for old, new in small.items():
            line = line.replace(old, new)
        done = subprocess.run(line, shell=True, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    assert len(list((tmp_path / "tokenizers").iterdir())) == 7


def test_python(checkout: Path) -> None:
    (program,) = blocks("python")
    done = subprocess.run([sys.executable, "-c", program], cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_recipe_shown_is_a_recipe(tmp_path: Path) -> None:
    from lepmerge.recipe import load_recipe

    (shown,) = blocks("yaml")
    (tmp_path / "recipe.yaml").write_text(shown)
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert recipe.steps[0].op == yaml.safe_load(shown)["steps"][0]["op"]


def test_files_that_the_readme_names_are_there() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    tree = README.split("    lepmerge/\n")[1].split("    recipes/")[0]
    for name in re.findall(r"[\w/]+\.py", tree):
        assert (ROOT / "lepmerge" / name).exists(), name
