"""Compare embedding-only training in lepmerge and in HF Trainer (frozen body), on the same blocks of Russian text.

    python benchmarks/train.py [--text FILE] [--model FOLDER]     default: the quickstart's text, SmolLM2-135M

Each case has 4 blocks of 512 tokens per step and runs on one CPU thread. Seconds are counted from the second step on,
memory over the whole process. "synthetic" is an untied random Llama with V = 128256, d = 512, 4 layers.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from inputs import russian, smollm2
from measure import Report, aim, alternating, arguments_of, measured, medians, ratios, script, show_aims, table

BATCH, BLOCK = 4, 512
NUM_NEW_ROWS = 32000
CASES = {
    # case: (model, lepmerge's precision, trained rows, Trainer's bf16, minimum speed ratio, maximum memory ratio)
    "synthetic, float32, all rows": ("synthetic", "fp32", "all", False, 1.25, 0.65),
    "synthetic, bfloat16, all rows": ("synthetic", "bf16", "all", True, 1.6, 0.70),
    "synthetic, bfloat16, last 32000 rows": ("synthetic", "bf16", "new", True, 2.2, 0.35),
    "SmolLM2-135M, bfloat16, all rows": ("smollm2", "bf16", "all", True, 0.95, 0.95),
}
SMALL_CASE = "synthetic, bfloat16, last 32000 rows"


def save_synthetic(folder: Path, rows: int = 128256) -> None:
    from synthetic import save_tokenizer, tokenizer_spec
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    set_seed(0)
    config = LlamaConfig(
        vocab_size=rows, hidden_size=512, intermediate_size=1536, num_hidden_layers=4, num_attention_heads=8,
        tie_word_embeddings=False,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    save_tokenizer(folder, tokenizer_spec(rows))


def opened(model: Path, text: Path, work: Path, precision: str, rows: str):
    """Return the session of a case. Both programs train on its blocks."""
    import torch

    from lepmerge.training.config import TrainConfig
    from lepmerge.training.group import Group
    from lepmerge.training.loop import StopSignal
    from lepmerge.training.session import open_session
    from lepmerge.training.setting import prepare

    config = TrainConfig.model_validate({
        "model": str(model), "data": [{"path": str(text), "limit": "300KB"}], "block_size": BLOCK, "batch_size": BATCH,
        "micro_batch": BATCH, "learning_rate": 1e-4, "schedule": "constant", "warmup_steps": 0, "precision": precision,
        "packing": "concatenate", "output": "out",
    })  # fmt: skip
    setting = prepare(config)
    if rows == "new":
        first = max(1, setting.start.num_rows - NUM_NEW_ROWS)
        setting = replace(setting, rows={role: range(first, setting.start.num_rows) for role in setting.rows})
    return open_session(setting, work, Group(torch.device("cpu")), StopSignal(), lambda event: None, held_out={})


def ours(model: Path, text: Path, work: Path, precision: str, rows: str, steps: int) -> dict[str, Any]:
    session = opened(model, text, work, precision, rows)
    learner = session.learner(1e-4)
    losses, began = [], 0.0
    for number in range(steps):
        losses.append(learner.step(number, micro_batch=BATCH, between=lambda: None).loss)
        began = began or time.process_time()
    return {"seconds": time.process_time() - began, "losses": losses}


def trainer(model: Path, text: Path, work: Path, bf16: bool, steps: int) -> dict[str, Any]:
    """Train with HF Trainer on lepmerge's blocks, with everything frozen except the embedding tables."""
    import torch
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    session = opened(model, text, work, "fp32", "all")
    learner = session.learner(1e-4)
    batches = [session.blocks.batch(learner.places(number)) for number in range(steps)]
    del session, learner
    items = [
        {
            "input_ids": ids,
            "labels": torch.where(torch.arange(len(ids)) <= (labels != -100).nonzero().max() + 1, ids, -100),
        }
        for batch in batches
        for ids, labels in zip(batch.id_BL, batch.label_BL, strict=True)
    ]
    peer = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    peer.requires_grad_(False)
    for part in (peer.get_input_embeddings(), peer.get_output_embeddings()):
        part.weight.requires_grad_(True)

    class Clock(TrainerCallback):
        began = 0.0
        losses: list[float] = []

        def on_step_end(self, *arguments, **options) -> None:
            self.began = self.began or time.process_time()

        def on_log(self, arguments, state, control, logs=None, **options) -> None:
            if logs and "loss" in logs:
                self.losses.append(logs["loss"])

    clock = Clock()
    arguments = TrainingArguments(
        output_dir=str(work / "trainer"), per_device_train_batch_size=BATCH, max_steps=steps, learning_rate=1e-4,
        lr_scheduler_type="constant", weight_decay=0.1, bf16=bf16, use_cpu=True, logging_steps=1, save_strategy="no",
        report_to=[], disable_tqdm=True, dataloader_pin_memory=False, train_sampling_strategy="sequential",
    )  # fmt: skip
    run = Trainer(model=peer, args=arguments, train_dataset=items, callbacks=[clock])
    run.train()
    return {"seconds": time.process_time() - clock.began, "losses": clock.losses}


def one(options: argparse.Namespace) -> None:
    """Run one program on one case in this process and write its metrics."""
    import logging

    logging.disable(logging.WARNING)
    _, precision, rows, bf16, *_ = CASES[options.case]
    text, work = options.text, options.work
    found = (
        ours(options.model, text, work, precision, rows, options.steps)
        if options.one == "lepmerge"
        else trainer(options.model, text, work, bf16, options.steps)
    )
    found["tokens_per_cpu_s"] = BATCH * BLOCK * (options.steps - 1) / found["seconds"]
    options.output.write_text(json.dumps(found))


def main() -> None:
    parser = arguments_of(__doc__, runs=3)
    parser.add_argument("--text", type=Path, help="a .txt file")
    parser.add_argument("--model", type=Path, help="folder of SmolLM2-135M")
    parser.add_argument("--steps", type=int, default=6)
    for name in ("one", "case"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    for name in ("work", "output"):
        parser.add_argument(f"--{name}", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(options)
        return
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}  # for the measured processes
    report = Report("train", options)
    cases: dict[str, Any] = {}
    aims: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary)
        save_synthetic(folder / "synthetic", 4096 if options.small else 128256)
        models = {"synthetic": folder / "synthetic"}
        if not options.small:
            models["smollm2"] = options.model or smollm2(folder)
        text = options.text or russian(folder)
        for case in [SMALL_CASE] if options.small else CASES:
            model, *_, speed, memory = CASES[case]
            print(case, file=sys.stderr)

            def run(way: str, case: str = case, model: str = model) -> dict[str, Any]:
                output = folder / "figures.json"
                arguments = ["--one", way, "--case", case, "--model", models[model], "--steps", options.steps]
                command = script(
                    "train.py", "--text", text, *arguments, "--work", folder / model[:3], "--output", output
                )
                figures = measured(command, label=way)
                return {**figures, **json.loads(output.read_text())}

            ways: dict[str, Callable[[], dict[str, Any]]] = {
                way: lambda way=way: run(way) for way in ("lepmerge", "Trainer")
            }
            raw = alternating(ways, runs=options.runs)
            mid = {way: medians(runs) for way, runs in raw.items()}
            faster = sorted(ratios(raw["lepmerge"], raw["Trainer"], "tokens_per_cpu_s"))[options.runs // 2]
            less = sorted(ratios(raw["lepmerge"], raw["Trainer"], "peak_mib"))[options.runs // 2]
            cases[case] = {"medians": mid, "runs": raw, "tokens_per_cpu_s": faster, "peak_memory": less}
            aims.append(aim(f"{case}: time per token, lepmerge / Trainer", 1 / faster, 1 / speed))
            aims.append(aim(f"{case}: peak memory, lepmerge / Trainer", less, memory))
    rows = [
        [case, way, found["medians"][way]["tokens_per_cpu_s"], found["medians"][way]["peak_mib"],
         found["runs"][way][0]["losses"][-1]]
        for case, found in cases.items() for way in found["medians"]
    ]  # fmt: skip
    print(table(rows, ["", "", "tokens a CPU s", "peak MiB", "last loss"]))
    show_aims(aims)
    report.write({"setting": {"batch": BATCH, "block": BLOCK, "steps": options.steps}, "cases": cases, "aims": aims})


if __name__ == "__main__":
    main()
