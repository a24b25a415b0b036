"""docs/adapt.ipynb, run from its first to its last cell. The trainings are cut short."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
CELLS = json.loads((ROOT / "docs/adapt.ipynb").read_text(encoding="utf-8"))["cells"]


def test_the_notebook_is_saved_without_outputs() -> None:
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in CELLS)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "recipes/quickstart", tmp_path / "recipes/quickstart", ignore=shutil.ignore_patterns("out"))
    held_out = tmp_path / "recipes/quickstart/heldout_ru.txt"
    held_out.write_text(held_out.read_text(encoding="utf-8")[:3000], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    names: dict[str, Any] = {}
    sources = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]
    assert any("lepmerge chain" in source for source in sources)
    for source in sources:
        if source.startswith("!"):
            words = shlex.split(source[1:].replace("--tokens 60K", "--tokens 8K").replace("\\\n", " "))
            done = subprocess.run(words, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, f"{source}\n{done.stderr[-2000:]}"
        else:
            exec(source, names)  # noqa: S102 -- the notebook's own code
    assert names["counts"]["adapted"] < names["counts"]["original"]
