"""The scripts outside the package import only what the package has. Most of them are too long to run here."""

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("benchmarks", "docs", "recipes", "tests/campaigns")
SCRIPTS = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py") if "out" not in path.parts)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_names_that_a_script_imports_from_the_package_exist(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "lepmerge":
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name) or importlib.import_module(f"{node.module}.{alias.name}")


def test_results_of_two_commits_are_compared(tmp_path: Path) -> None:
    head = {"benchmark": "copy", "git_commit": "a" * 40, "machine": {"cores": 2}, "versions": {"torch": "2.12"}}
    old = {**head, "medians": {"ours": {"cpu_s": 4.0, "peak_mib": 300}}, "runs": [{"cpu_s": 4.5}]}
    aims = [{"aim": "ratio", "value": 0.5, "limit": 0.7, "met": True}]
    new = {**head, "git_commit": "b" * 40, "versions": {"torch": "2.13"}, "aims": aims}
    new |= {"medians": {"ours": {"cpu_s": 3.0, "peak_mib": 300}}, "runs": [{"cpu_s": 9.5}]}
    for name, result in (("old", old), ("new", new)):
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    command = [sys.executable, ROOT / "benchmarks/compare.py", tmp_path / "old.json"]
    done = subprocess.run([*command, tmp_path / "new.json"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.splitlines() == [
        "copy: aaaaaaa → bbbbbbb",
        "  torch: 2.12 → 2.13",
        "figure              old  new  new / old",
        "medians.ours.cpu_s  4    3    0.75",
    ]
    failed = subprocess.run([*command, "no-such-commit"], capture_output=True, text=True)
    assert failed.returncode == 1 and failed.stderr.startswith("no-such-commit: neither a file, a folder nor a commit")
