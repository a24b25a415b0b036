"""The wheel alone, without a clone: a project from model and text to a report, the benchmark's tasks, completion."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from lepmerge.version import __version__

ROOT = Path(__file__).parent.parent
QUICKSTART = ROOT / "recipes/quickstart"
NOT_SHARED = ("lepmerge", "_editable_impl_lepmerge", "darumeru", "pip", "__pycache__", "__editable__")


@pytest.mark.slow
def test_the_wheel_works_without_a_clone(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    for name in ("lepmerge", "eval"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone)
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "LEPMERGE_LM_EVAL")}
    clean |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def run(*command: str | Path, **more: str) -> str:
        done = subprocess.run(command, env=clean | more, cwd=tmp_path, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout

    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, clone)
    shutil.rmtree(clone)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert wheel.name.startswith(f"lepmerge-{__version__}-") and "lepmerge/projects/templates/README.md.jinja" in names
    assert not [name for name in names if name.startswith(("tests/", "recipes/", "docs/"))]

    environment = tmp_path / "environment"
    run(sys.executable, "-m", "venv", "--without-pip", environment)
    (site,) = environment.glob("lib/python*/site-packages")
    packages = tmp_path / "packages"
    packages.mkdir()
    for entry in Path(pytest.__file__).parents[1].iterdir():
        if not entry.name.startswith(NOT_SHARED) and entry.suffix not in (".pth", ".start"):
            (packages / entry.name).symlink_to(entry)
    (site / "packages.pth").write_text(f"{packages}\n")
    run(*pip, "--python", environment / "bin/python", "install", "-q", "--no-deps", wheel)
    lepmerge = environment / "bin/lepmerge"
    assert run(lepmerge, "--version").strip() == f"lepmerge, version {__version__}"

    shutil.copytree(QUICKSTART / "base", tmp_path / "base")
    shutil.copytree(QUICKSTART / "instruct", tmp_path / "instruct")
    text = ("--text", QUICKSTART / "train_ru.jsonl.gz", "--held-out", QUICKSTART / "heldout_ru.txt")
    run(lepmerge, "init", "instruct", "project", *text, "--tokens", "5K")
    for name, old, new in (
        ("train.yaml", "limit: 100KB", "limit: 4KB"),
        ("calibrate.yaml", "limit: 100KB", "limit: 4KB"),
        ("project.yaml", "100kB --copies 4", "4kB --copies 0"),
    ):
        path = tmp_path / "project" / name
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))
    run(lepmerge, "chain", "project")
    assert (tmp_path / "project/out/instruct-ru/config.json").exists() and (
        tmp_path / "project/out/report.html"
    ).exists()

    listed = run(environment / "bin/python", "-m", "lm_eval", "ls", "tasks")
    assert re.search(r"\bdarumeru\b", listed)
    completed = run(lepmerge, _LEPMERGE_COMPLETE="zsh_complete", COMP_WORDS="lepmerge cha", COMP_CWORD="1")
    assert completed.split()[:2] == ["plain", "chain"]


def test_the_version_stands_in_one_place() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert not re.search(r"^version", text, re.MULTILINE) and 'version]\npath = "lepmerge/version.py"' in text
    newest = re.search(r"^## (\S+) \((\S+)\)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert newest and newest.groups() == (__version__, str(cited["date-released"])) and cited["version"] == __version__


def test_the_docs_name_every_extra() -> None:
    part = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]\n")[2]
    extras = re.findall(r"^(\w+) = ", part.partition("\n[")[0], re.MULTILINE)
    table = (ROOT / "docs/install.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == set(extras)


def test_the_workflow_and_the_dockerfile_name_files_that_exist() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert any("python -m build" in step.get("run", "") for step in steps)
    assert not [step for step in steps if "@" not in step.get("uses", "@")]
    docker = (ROOT / "Dockerfile").read_text()
    copied = [name for line in re.findall(r"^COPY (?!--from)(.*) \S+$", docker, re.MULTILINE) for name in line.split()]
    assert copied and all((ROOT / name).exists() for name in copied)
    assert re.search(r"^ARG TORCH_INDEX=\S+/cpu$", docker, re.MULTILINE)
