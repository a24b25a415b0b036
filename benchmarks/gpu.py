"""Run the GPU tests and the GPU benchmarks on this machine, in at most 9 minutes, without a network.

    make gpu                 or: python benchmarks/gpu.py

Stages that no longer fit into the time are left out and named. Writes results/gpu.json and prints a table.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measure import Report, table

SECONDS = 9 * 60
ROOT = Path(__file__).parent.parent


def stages(text: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield name and command of every stage, the most important ones first. text: a file to distil on."""
    python, here = sys.executable, ROOT / "benchmarks"
    yield "GPU tests", [python, "-m", "pytest", "-q", str(ROOT / "tests" / "test_gpu.py")]
    for case in ("1B, bf16, all rows", "1B, bf16, new rows", "1B, nf4, new rows"):
        yield f"train {case}", [python, str(here / "train_shapes.py"), "--case", case]
    yield "HF Trainer 1B, bf16", [
        python, str(here / "train_shapes.py"), "--case", "1B, bf16, all rows", "--way", "trainer",
    ]  # fmt: skip
    yield "propagate.py", [python, str(here / "propagate.py"), "--device", "cuda", "--runs", "1"]
    yield "distill.py", [python, str(here / "distill.py"), "--text", str(text), "--device", "cuda", "--runs", "1"]
    for case in ("8B, nf4, new rows", "8B, bf16, new rows"):
        yield f"train {case}", [python, str(here / "train_shapes.py"), "--case", case]
    yield "llama3_8b.py", [python, str(here / "llama3_8b.py"), "--device", "cuda"]
    for case in ("8B, nf4, all rows", "8B, bf16, all rows", "1B, nf4, all rows"):
        yield f"train {case}", [python, str(here / "train_shapes.py"), "--case", case]


def run(name: str, command: list[str], seconds: float) -> dict[str, Any]:
    """Run a stage; return its outcome, wall seconds and the figures that it printed."""
    print(f"{name} …", file=sys.stderr, flush=True)
    began = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, cwd=ROOT)
    except subprocess.TimeoutExpired:
        return {"outcome": "left out: out of time", "wall_s": round(time.perf_counter() - began, 1)}
    found: dict[str, Any] = {"wall_s": round(time.perf_counter() - began, 1)}
    lines = done.stdout.strip().splitlines()
    if done.returncode:
        problem = (done.stderr.strip().splitlines() or lines or ["no output"])[-1]
        return {"outcome": f"failed: {problem}", **found, "output": (done.stdout + done.stderr)[-4000:]}
    if lines and lines[-1].startswith("{"):
        return {"outcome": "ok", **found, **json.loads(lines[-1])}
    return {"outcome": "ok", **found, "output": lines[-12:]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    options = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        print(f"make gpu needs a CUDA GPU, and torch {torch.__version__} finds none here: nothing was measured",
              file=sys.stderr)  # fmt: skip
        return 1
    report = Report("gpu")
    report.head["gpu"] = {
        "name": torch.cuda.get_device_name(),
        "memory_gib": round(torch.cuda.get_device_properties(0).total_memory / (1 << 30), 1),
        "cuda": torch.version.cuda,
    }
    until = time.perf_counter() + options.seconds
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        text = Path(temporary) / "text.txt"
        text.write_text("\n\n".join(f"number {n} and its square {n * n}, as a text" for n in range(9999)))
        for name, command in stages(text):
            left = until - time.perf_counter()
            found[name] = run(name, command, left) if left > 10 else {"outcome": "left out: out of time"}
            report.write({"stages": found})
    rows = [[name, stage["outcome"], stage.get("wall_s"), stage.get("tokens_per_s"),
             stage.get("peak_device_bytes", 0) / 1e9 or None] for name, stage in found.items()]  # fmt: skip
    print(table(rows, ["stage", "outcome", "wall s", "tokens per s", "peak GB"]))
    return 0 if all(stage["outcome"] == "ok" for stage in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
