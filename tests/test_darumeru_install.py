"""What pip does with lepmerge and the harness, each as a wheel and editable: the tasks come, and go without a trace."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHARED_NOT = ("lepmerge", "_editable_impl_lepmerge", "darumeru", "lm_eval", "pip", "__pycache__", "__editable__")
SHOW_FOUND = """
from lm_eval.tasks import TaskManager, manager
found = TaskManager().task_index
print(manager.__file__)
print(sorted(str(entry.yaml_path) for name, entry in found.items() if name.startswith("darumeru")))
"""


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what is installed here, by links, but for lepmerge, the harness and .pth files."""
    folder = tmp_path_factory.mktemp("packages")
    for entry in Path(pytest.__file__).parents[1].iterdir():
        if not entry.name.startswith(SHARED_NOT) and entry.suffix not in (".pth", ".start"):
            (folder / entry.name).symlink_to(entry)
    return folder


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of what a build of lepmerge reads."""
    for name in ("lepmerge", "eval"):
        shutil.copytree(ROOT / name, tmp_path / "clone" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / "clone")
    return tmp_path / "clone"


@pytest.mark.slow
@pytest.mark.parametrize("harness_is_editable", [False, True], ids=["harness", "editable-harness"])
@pytest.mark.parametrize("ours_is_editable", [False, True], ids=["wheel", "editable"])
def test_installed(
    packages: Path, clone: Path, tmp_path: Path, harness_is_editable: bool, ours_is_editable: bool
) -> None:
    """In a new environment the tasks come with pip's install and go with its uninstall; nothing is left behind."""
    import lm_eval

    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    interpreter = environment / "bin" / "python"
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "packages.pth").write_text(f"{packages}\n")
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "LEPMERGE_LM_EVAL")}

    def run(*command: str | Path) -> str:
        done = subprocess.run(command, env=clean, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def pip(*arguments: str | Path) -> None:
        run(sys.executable, "-m", "pip", "--python", interpreter, "--disable-pip-version-check", *arguments)

    original = Path(lm_eval.__file__).parent
    if harness_is_editable:
        (tmp_path / "harness").mkdir()
        (tmp_path / "harness" / "lm_eval").symlink_to(original)
        (tmp_path / "harness" / "pyproject.toml").write_text(
            '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
            '[project]\nname = "lm_eval"\nversion = "0.4.13"\n[tool.setuptools]\npackages = ["lm_eval"]\n'
        )
        pip("install", "--no-deps", "--no-build-isolation", "-e", tmp_path / "harness")
    else:
        for entry in original.parent.glob("lm_eval*"):
            (site / entry.name).symlink_to(entry)
    untouched = sorted(path.name for path in site.iterdir())
    pip("install", "--no-deps", "--no-build-isolation", *(["-e"] if ours_is_editable else []), clone)

    place, tasks = run(interpreter, "-c", SHOW_FOUND).splitlines()
    assert Path(place).is_relative_to(site) != harness_is_editable
    paths = [Path(path) for path in json.loads(tasks.replace("'", '"'))]
    assert len(paths) == 23 and {path.parent for path in paths} == {
        (clone / "eval" if ours_is_editable else site) / "darumeru_tasks"
    }
    assert run(interpreter, "-m", "lm_eval", "validate", "--tasks", "darumeru,darumeru_copy_ru,darumeru_use")
    assert "darumeru" not in run("env", "LEPMERGE_LM_EVAL=0", interpreter, "-c", SHOW_FOUND)

    pip("uninstall", "-y", "lepmerge")
    assert run(interpreter, "-c", SHOW_FOUND).splitlines() == [place, "[]"]
    assert sorted(path.name for path in site.iterdir()) == untouched
    silent = subprocess.run([interpreter, "-c", "pass"], env=clean, capture_output=True, text=True, check=True)
    assert silent.stderr == silent.stdout == ""
