"""Train with a sharded body in two processes, and in one process: the losses, and the peak memory of each process.

    python benchmarks/shard.py

The model is a random Llama with a body of 2.6 GB in float32. The processes talk over gloo on the CPU.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from measure import MiB, Report, aim, arguments_of, show_aims, table

LAYERS, WIDTH, INNER, ROWS = 70, 768, 3072, 2000


def save_setting(folder: Path, layers: int) -> Path:
    """Write a model, a text and a configuration. Every layer has the same random weights."""
    import torch
    from synthetic import save_tokenizer, tokenizer_spec
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    set_seed(0)
    config = LlamaConfig(
        vocab_size=ROWS, hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=layers, num_attention_heads=12,
        tie_word_embeddings=False, dtype=torch.float32,
    )  # fmt: skip
    with torch.device("meta"):
        network = LlamaForCausalLM(config)
    first = {name: torch.randn(weight.shape) * 0.02 for name, weight in network.state_dict().items()
             if ".layers." not in name or ".layers.0." in name}  # fmt: skip
    first = {name: torch.ones_like(weight) if "norm" in name else weight for name, weight in first.items()}
    weights = {name: first[_in_first_layer(name)] for name in network.state_dict()}
    network.config.save_pretrained(folder / "model")
    from safetensors.torch import save_file

    save_file({name: weight.clone() for name, weight in weights.items()}, folder / "model" / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    save_tokenizer(folder / "model", tokenizer_spec(ROWS))
    (folder / "text.txt").write_text("\n\n".join(f"number {n} and its square {n * n}, as a text" for n in range(99)))
    settings = {
        "model": "model", "data": "text.txt", "precision": "fp32", "block_size": 64, "batch_size": 2, "micro_batch": 1,
        "max_tokens": 250, "warmup_steps": 0, "learning_rate": 1e-3, "output": "out",
    }  # fmt: skip
    (folder / "train.yaml").write_text(json.dumps(settings))
    return folder / "train.yaml"


def _in_first_layer(name: str) -> str:
    before, dot, after = name.partition(".layers.")
    return f"{before}.layers.0.{after.partition('.')[2]}" if dot else name


def train(path: Path, processes: int) -> dict[str, Any]:
    """Train in one or several processes; return the losses, and the peak memory and CPU seconds of each process."""
    output = path.parent / f"out-{processes}"
    command = [sys.executable, "-m", "lepmerge", "train", str(path), "--device", "cpu", "-q", "--set",
               f"output={output}", *(["--shard"] if processes > 1 else [])]  # fmt: skip
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    began = time.perf_counter()
    started = []
    for rank in range(processes):
        group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        variables = {name: str(value) for name, value in group.items()} if processes > 1 else {}
        environment = {**os.environ, **address, **variables, "ACCELERATE_USE_CPU": "true"}
        started.append(subprocess.Popen(command, env=environment))
    peaks, seconds = [], []
    for process in started:
        _, status, usage = os.wait4(process.pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0, "a process failed"
        peaks.append(round(usage.ru_maxrss * 1024 / MiB, 1))
        seconds.append(round(usage.ru_utime + usage.ru_stime, 1))
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    wall = round(time.perf_counter() - began, 1)
    return {"peak_mib": peaks, "cpu_s": seconds, "wall_s": wall, "losses": [line["loss"] for line in lines]}


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--save", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.save:
        save_setting(options.save, options.layers)
        return
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    report = Report("shard", options)
    layers = 2 if options.small else options.layers
    report.head["versions"]["accelerate"] = version("accelerate")
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        # in a separate process: the peak of a forked child includes the memory of its parent
        subprocess.run([sys.executable, __file__, "--save", temporary, "--layers", str(layers)], check=True)
        path = Path(temporary) / "train.yaml"
        size = (path.parent / "model" / "model.safetensors").stat().st_size - 2 * 4 * ROWS * WIDTH
        found = {count: train(path, count) for count in (1, 2)}
    one, two = found[1], found[2]
    drift = max(abs(a / b - 1) for a, b in zip(two["losses"], one["losses"], strict=True))
    aims = [
        aim("largest difference of the losses, relative", drift, 1e-4),
        aim("peak memory of a process of two / of one process", max(two["peak_mib"]) / one["peak_mib"][0], 0.65),
    ]
    print(table([[count, figures["peak_mib"], figures["cpu_s"], figures["wall_s"]] for count, figures in found.items()],
                header=["processes", "peak MiB", "CPU s", "wall s"]))  # fmt: skip
    show_aims(aims)
    report.write({"setting": {"layers": layers, "width": WIDTH, "inner": INNER, "rows": ROWS,
                              "body_mib": round(size / MiB)},
                  "processes": found, "aims": aims})  # fmt: skip


if __name__ == "__main__":
    main()
