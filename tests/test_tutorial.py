"""docs/tutorial.md, typed from its first to its last line, with a quarter of its training."""

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
    pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="pip install gguf"),
]


def test_the_tutorial_leads_to_a_model_that_works(tmp_path: Path) -> None:
    """The commands are typed in an empty folder: the tutorial needs no clone."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    printed, num_shortened = "", 0
    for language, block in BLOCK.findall((ROOT / "docs/tutorial.md").read_text(encoding="utf-8")):
        num_shortened += "--tokens 48K" in block
        block = block.replace("--tokens 48K", "--tokens 12K")
        command = [sys.executable, "-c", block] if language == "python" else ["bash", "-e", "-c", block]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{block}\n{done.stderr[-2000:]}"
        printed += done.stdout
    assert num_shortened == 1 and "Paris" in printed
    before, after = (float(bits) for bits in re.findall(r"^uk: (\S+) → (\S+) bits", printed, re.MULTILINE)[0])
    assert after < before - 0.05
    texts = printed.partition("symbols/token uk")[2].partition("\n\n")[0]
    old, new = (float(symbols) for symbols in re.findall(r"^(?:original|adapted) +\d+ +(\S+)", texts, re.MULTILINE))
    assert new > 1.5 * old
    card = (tmp_path / "ukrainian/out/smollm2-uk/README.md").read_text(encoding="utf-8")
    written = re.findall(r"^\| uk \| characters per token \| (\S+) \| (\S+) \|$", card, re.MULTILINE)
    assert "model-index:" in card and [float(value) for value in written[0]] == pytest.approx([old, new], abs=0.01)
    counts = re.findall(r"^\S+ (\d+) tokens$", printed, re.MULTILINE)
    assert len(counts) == 2 and int(counts[1]) < int(counts[0])
