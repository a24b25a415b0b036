"""The scripts outside the package import only what the package has. Most of them are too long to run here."""

import ast
import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

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


@pytest.fixture(scope="module")
def runner() -> ModuleType:
    """Return benchmarks/__main__.py as a module."""
    spec = importlib.util.spec_from_file_location("benchmarks_main", ROOT / "benchmarks/__main__.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["benchmarks_main"] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def run_all(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "benchmarks", "--small", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_every_script_that_writes_results_is_run_by_make_benchmarks_or_make_gpu(runner: ModuleType) -> None:
    listed = {benchmark.script or f"{benchmark.name}.py" for benchmark in runner.BENCHMARKS}
    scripts = {path.name for path in (ROOT / "benchmarks").glob("*.py") if "Report(" in path.read_text()}
    assert scripts - {"measure.py", "gpu.py"} == listed - {"methods"}
    by_others = {"quickstart"}  # make quickstart
    results = {path.stem for path in (ROOT / "benchmarks/results").glob("*.json")}
    assert results - by_others <= {b.name for b in runner.BENCHMARKS}
    for benchmark in runner.BENCHMARKS:
        assert {*benchmark.peers, *benchmark.needs} <= runner.PEERS.keys()


def test_small_benchmarks_run_and_the_others_say_what_is_missing(tmp_path: Path, runner: ModuleType) -> None:
    done = run_all("--only", "merge,vocabulary,methods", "--results", tmp_path / "new")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "new/vocabulary.json").read_text())
    assert result["small"] is True and result["setting"] == {"old": 6000, "new": 9000}
    lines = done.stdout.splitlines()
    rows = {line.split()[0]: line.split(maxsplit=2)[1:] for line in lines[lines.index("") + 1 :]}
    assert list(rows) == ["benchmark", "vocabulary", "merge", "methods"]
    assert rows["vocabulary"][1] == "ran" and float(rows["vocabulary"][0]) > 0
    assert rows["methods"] == ["0.0", "skipped: has no small form"]
    if not runner.MERGEKIT.exists():
        assert rows["merge"] == ["0.0", f"skipped: needs mergekit: {runner.PEERS['mergekit'][1]}"]
        assert f"merge: skipped: needs mergekit: {runner.PEERS['mergekit'][1]}" in done.stderr.splitlines()
    unknown = run_all("--only", "marge")
    assert unknown.returncode == 2 and "--only: no benchmark is called marge; choose from startup," in unknown.stderr
    nowhere = run_all("--only", "vocabulary", "--folder", tmp_path / "nowhere")
    assert nowhere.returncode == 2 and f"--folder: {tmp_path / 'nowhere'} is not a folder" in nowhere.stderr


def test_a_failure_and_too_little_disk_space_are_told(tmp_path: Path, runner: ModuleType) -> None:
    broken = runner.Benchmark("no_such_script", 1)
    outcome, seconds = runner.run(broken, small=True, folder=tmp_path, results=tmp_path)
    assert outcome == "FAILED, exit status 2" and seconds > 0
    large = runner.Benchmark("startup", 1, gigabytes=20)
    assert large.obstacle(small=False, free=20 * 10**9) is None
    assert large.obstacle(small=True, free=0) is None
    assert large.obstacle(small=False, free=20 * 10**9 - 1) == (
        "needs 20 GB of disk space: free some, or name another disk with --folder"
    )


def test_missed_targets_are_counted(tmp_path: Path, runner: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "script.py").write_text(
        "import json, pathlib, sys\n"
        "aims = [{'met': True}, {'met': False}, {'met': True}]\n"
        "pathlib.Path(sys.argv[-1], 'script.json').write_text(json.dumps({'aims': aims}))\n"
    )
    monkeypatch.setattr(runner, "HERE", tmp_path)
    outcome, _ = runner.run(runner.Benchmark("script", 1), small=False, folder=tmp_path, results=tmp_path)
    assert outcome == "ran, 2 of 3 targets met"


@pytest.mark.slow
def test_all_benchmarks_in_their_small_form(tmp_path: Path, runner: ModuleType) -> None:
    done = run_all("--results", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    rows = [line.split(maxsplit=2) for line in lines[len(lines) - len(runner.BENCHMARKS) :]]
    assert [name for name, *_ in rows] == [benchmark.name for benchmark in runner.BENCHMARKS]
    for name, _, outcome in rows:
        assert outcome == "ran" or outcome.startswith("skipped: ")
        assert (tmp_path / f"{name}.json").exists() == (outcome == "ran")
