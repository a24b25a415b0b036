"""Measure how long `lepmerge train` takes before its first step, as a fraction of a training of ten minutes.

    python benchmarks/start.py

SmolLM2-135M with 1,000 Russian tokens, whose rows are trained, in bfloat16 on one thread, 4 blocks of 512 tokens per
step. Everything counts until the first step begins: Python's imports, the model, reading, tokenizing and packing. The
training itself is not run for ten minutes. Some steps tell its speed, and from the speed follows the amount of text
that ten minutes take (one epoch). The start is then measured with exactly that much text, and with ten times as much.
The first step is slower than the others; the difference counts as a part of the start.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from inputs import russian, smollm2
from measure import Report, aim, arguments_of, lepmerge, measured, script, show_aims, table

SECONDS = 600
BATCH, BLOCK = 4, 512
NUM_TOKENS = 1000
SPEED_BYTES = 300_000
"""Text of the run that measures the speed."""
MORE = 10


def one(options: argparse.Namespace) -> None:
    """Train in this process, and write the CPU seconds until the first step and for each of the others."""
    from lepmerge.training.config import TrainConfig
    from lepmerge.training.events import StepDone, TextRead, TrainingEvent
    from lepmerge.training.run import train

    begins_to_read: list[float] = []
    steps: list[tuple[float, int]] = []

    def on_event(event: TrainingEvent) -> None:
        if isinstance(event, TextRead):
            begins_to_read.append(time.process_time())
        if isinstance(event, StepDone):
            steps.append((time.process_time(), event.step_tokens))

    folder: Path = options.folder
    config = TrainConfig.model_validate({
        "model": options.model, "tokenizer": str(folder / "ru"), "train": {"rows": "new"},
        "data": [{"path": str(folder / "long.txt"), "limit": options.num_bytes}], "block_size": BLOCK,
        "batch_size": BATCH, "micro_batch": BATCH, "learning_rate": 1e-3, "warmup_steps": 0, "precision": "bf16",
        "max_tokens": BATCH * BLOCK * options.steps, "output": str(Path(options.output).with_suffix("")),
    })  # fmt: skip
    train(config, on_event=on_event)
    (first, _), *others = steps
    step = (others[-1][0] - first) / len(others)
    found = {
        "start_s": first - step,
        "before_reading_s": begins_to_read[0],
        "step_s": step,
        "tokens_per_step": sum(tokens for _, tokens in others) / len(others),
        "steps": len(steps),
    }
    Path(options.output).write_text(json.dumps(found))


def save_setting(folder: Path, num_bytes: int, *, small: bool) -> tuple[Path, float]:
    """Write model, tokenizer and a text of at least num_bytes. Return the model and bytes per token of the text."""
    from tokenizers import Tokenizer

    model, text = smollm2(folder, small=small), russian(folder)
    extend = ("tokenizer", "extend", model, text, "--add", str(NUM_TOKENS), "--script", "Cyrillic", "-o", folder / "ru")
    subprocess.run(lepmerge(*extend), check=True, capture_output=True)
    content = text.read_text(encoding="utf-8")
    size = len(content.encode())
    (folder / "long.txt").write_text("\n\n".join([content] * -(-num_bytes // size)), encoding="utf-8")
    sample = content[:200_000]
    tokenizer = Tokenizer.from_file(str(folder / "ru" / "tokenizer.json"))
    return model, len(sample.encode()) / len(tokenizer.encode(sample, add_special_tokens=False).ids)


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--num-bytes", type=int, help=argparse.SUPPRESS)
    for name in ("model", "output"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(options)
        return
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}  # for the measured processes
    report = Report("start", options)
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary)
        most = SPEED_BYTES if options.small else 20_000_000
        model, bytes_per_token = save_setting(folder, most, small=options.small)

        def run(num_bytes: int, label: str) -> dict[str, Any]:
            output = folder / f"{label}.json"
            arguments = ["--one", "--num-bytes", num_bytes, "--steps", 2 if options.small else options.steps]
            command = script("start.py", *arguments, "--model", model, "--folder", folder, "--output", output)
            return {"bytes": num_bytes, **measured(command, label=label), **json.loads(output.read_text())}

        speed = run(SPEED_BYTES, "some steps")
        tokens_per_s = speed["tokens_per_step"] / speed["step_s"]
        size = min(most // MORE, round(SECONDS * tokens_per_s * bytes_per_token))
        found = {
            "ten minutes": run(size, "the text of ten minutes"),
            "ten times": run(size * MORE, "ten times as much"),
        }
    start, more = found["ten minutes"], found["ten times"]
    s_per_byte = (more["start_s"] - start["start_s"]) / (more["bytes"] - start["bytes"])
    fixed = start["start_s"] - s_per_byte * start["bytes"]
    fastest = (0.05 * SECONDS - fixed) / s_per_byte / bytes_per_token / SECONDS
    rows = [
        [name, each["bytes"] / 1e6, each["start_s"], each["before_reading_s"], each["step_s"]]
        for name, each in (("ten minutes", start), ("ten times", more))
    ]
    print(table(rows, ["text", "MB", "start, CPU s", "before reading", "a step"]))
    print(
        f"trains {tokens_per_s:.0f} tokens per CPU s; the start takes 5 % at {fastest:.0f} tokens per s, on one thread"
    )
    aims = [aim("start / ten minutes of training", start["start_s"] / SECONDS, 0.05)]
    show_aims(aims)
    setting = {"batch": BATCH, "block": BLOCK, "new_rows": NUM_TOKENS, "bytes_per_token": round(bytes_per_token, 3)}
    derived = {
        "tokens_per_cpu_s": round(tokens_per_s, 1),
        "start_without_text_s": round(fixed, 3),
        "start_s_per_mb": round(s_per_byte * 1e6, 3),
        "tokens_per_s_at_5_percent": round(fastest),
    }
    report.write({"setting": setting, "speed": speed, "starts": [start, more], **derived, "aims": aims})


if __name__ == "__main__":
    main()
