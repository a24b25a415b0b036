"""What the documents tell a user to type works as it stands there."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    """Return the lepmerge commands of the shell blocks, comments left out."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
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
