"""Helpers for the benchmarks: CPU seconds and peak memory of a command, alternating runs, the machine, the JSON file.

`python measure.py COMMAND …` runs a command and prints its metrics as JSON. The benchmarks start it through `measured`
instead of starting the command themselves, because Linux counts the parent's memory at the time of the fork in the
child's peak: the parent must be a small process.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SMALL_RESULTS = ROOT / "out" / "benchmarks"
PACKAGES = ("lepmerge", "torch", "tokenizers", "transformers", "safetensors", "numpy")
SAMPLING_SECONDS = 0.02
MiB = 1 << 20
Figures = dict[str, Any]


def measured(command: Sequence[str | Path], *, label: str = "", log: Path | None = None) -> Figures:
    """Run a command in a separate process and return its metrics.

    wall_s: elapsed seconds. cpu_s: user + system, including children. peak_mib: resident memory, with mapped files.
    peak_anon_mib: without mapped files, sampled every 20 ms. A command that fails raises RuntimeError with the end of
    its output.
    """
    program = [sys.executable, "-S", __file__, *map(str, command)]
    done = subprocess.run(program, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{label or command[0]} failed:\n{done.stderr[-3000:]}")
    if log is not None:
        log.write_text(done.stderr)
    figures = json.loads(done.stdout.splitlines()[-1])
    print(f"  {label:32} {shown(figures)}", file=sys.stderr, flush=True)
    return figures


def _run(command: list[str]) -> int:
    """Run a command and print its metrics. The command's own output goes to stderr."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=sys.stderr, stdin=subprocess.DEVNULL)
    peak_anon = 0
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        peak_anon = max(peak_anon, _anonymous_bytes(process.pid))
        time.sleep(SAMPLING_SECONDS)
    figures = {
        "wall_s": round(time.perf_counter() - began, 3),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 3),
        "peak_mib": round(usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / MiB, 1),
        "peak_anon_mib": round(peak_anon / MiB, 1) or None,
    }
    print(json.dumps(figures))
    return os.waitstatus_to_exitcode(status)


def _anonymous_bytes(pid: int) -> int:
    """Return the resident memory that is not backed by a file, or 0 on systems without /proc."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:"))


def alternating(ways: dict[str, Callable[[], Figures]], *, runs: int) -> dict[str, list[Figures]]:
    """Run all ways in turn, `runs` times, so that other load on the machine affects all of them alike."""
    raw: dict[str, list[Figures]] = {name: [] for name in ways}
    for _ in range(runs):
        for name, way in ways.items():
            raw[name].append(way())
    return raw


def medians(runs: Sequence[Figures]) -> Figures:
    """Return the median of every metric."""
    keys = [key for key in runs[0] if all(isinstance(run.get(key), int | float) for run in runs)]
    return {key: round(median(run[key] for run in runs), 3) for key in keys}


def ratios(first: Sequence[Figures], second: Sequence[Figures], key: str = "cpu_s") -> list[float]:
    """Return first / second, pair by pair."""
    return [round(a[key] / b[key], 3) for a, b in zip(first, second, strict=True)]


def lepmerge(*arguments: str | Path) -> list[str | Path]:
    """Return the command of this environment's lepmerge."""
    return [Path(sys.executable).parent / "lepmerge", *arguments]


def script(name: str, *arguments: str | int | Path) -> list[str]:
    """Return the command that runs another file of this folder."""
    return [sys.executable, str(Path(__file__).with_name(name)), *map(str, arguments)]


def table(rows: Sequence[Sequence[Any]], header: Sequence[str]) -> str:
    lines = [header, *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) and abs(value) < 100 else f"{value}"


def shown(figures: Figures) -> str:
    return f"{figures['cpu_s']:9.2f} CPU s {figures['wall_s']:9.2f} wall s {figures['peak_mib']:9.1f} MiB peak"


def machine() -> dict[str, Any]:
    """Return processor, cores, memory and system, without names that identify the machine."""
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    models = [line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30), 1),
        "os": f"{platform.system()} {platform.release()}",
    }


def arguments_of(doc: str | None, *, runs: int | None = None) -> argparse.ArgumentParser:
    """Return a parser with the options of every benchmark.

    doc: the docstring of the script. runs: the default of --runs; if None, the script has no --runs.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if runs is not None:
        parser.add_argument("--runs", type=int, default=runs, help=f"runs of each way; medians count (default: {runs})")
    parser.add_argument("--small", action="store_true", help="small settings, to check that everything runs")
    parser.add_argument("--folder", type=Path, help="where models go while they are needed (default: a temporary one)")
    parser.add_argument(
        "--results", type=Path,
        help="folder of the JSON file (default: benchmarks/results; with --small: out/benchmarks)",
    )  # fmt: skip
    return parser


class Report:
    """The JSON file of a benchmark: date, machine, versions, then its metrics.

    options: what `arguments_of` parsed; it says where the file goes. With a device other than the CPU, the name ends
    with its kind.
    """

    def __init__(self, name: str, options: argparse.Namespace | None = None, *, device: str = "cpu") -> None:
        name = name if device == "cpu" else f"{name}_{device.partition(':')[0]}"
        self.name = name
        chosen, small = (options.results, options.small) if options else (None, False)
        self.path = (chosen or (SMALL_RESULTS if small else RESULTS)) / f"{name}.json"
        here = Path(__file__).parent
        git = ["git", "-C", str(here), "rev-parse", "HEAD"]
        changed = ["git", "-C", str(here), "status", "--porcelain", "--", "../lepmerge"]
        self.head = {
            "benchmark": name,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "git_commit": subprocess.run(git, capture_output=True, text=True).stdout.strip(),
            "small": bool(options and options.small),
            "uncommitted_changes": bool(subprocess.run(changed, capture_output=True, text=True).stdout.strip()),
            "machine": machine(),
            "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
            "load_average_at_start": [round(value, 2) for value in os.getloadavg()],
            "note": "other work may have run on the machine: compare CPU seconds; wall seconds are noisy",
        }

    def write(self, figures: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        head = {**self.head, "load_average_at_end": [round(value, 2) for value in os.getloadavg()]}
        text = json.dumps({**head, **figures}, indent=2, ensure_ascii=False) + "\n"
        self.path.write_text(text)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def aim(what: str, value: float, limit: float) -> dict[str, Any]:
    """Return an aim with the measured value. The aim is met if the value is at most `limit`."""
    return {"aim": what, "value": round(value, 4), "limit": limit, "met": value <= limit}


def show_aims(aims: Sequence[dict[str, Any]]) -> None:
    for entry in aims:
        print(f"{'met   ' if entry['met'] else 'MISSED'}  {entry['aim']}: {entry['value']} (at most {entry['limit']})")


if __name__ == "__main__":
    sys.exit(_run(sys.argv[1:]))
