"""Measure embedding-only training on a device with the shapes of real models and random weights, next to HF Trainer.

    python benchmarks/train_shapes.py --device cuda --case "8B, nf4, new rows"

Prints one line of JSON: tokens per second from the second step on, the peak memory of the device, the estimate.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

BLOCK, NUM_NEW_ROWS = 1024, 46_560
SHAPES = {
    "1B": {"width": 2048, "layers": 16, "intermediate": 8192, "heads": 32, "kv_heads": 8, "tied": True},
    "8B": {"width": 4096, "layers": 32, "intermediate": 14336, "heads": 32, "kv_heads": 8, "tied": False},
    "pico": {"width": 64, "layers": 2, "intermediate": 128, "heads": 4, "kv_heads": 2, "tied": False},
}
CASES = {
    f"{shape}, {precision}, {rows} rows": (shape, precision, rows)
    for shape in SHAPES
    for precision in ("bf16", "nf4")
    for rows in ("new", "all")
}


def save_setting(folder: Path, shape: str, num_rows: int, num_new: int) -> None:
    """Write a model with random weights and a text; the vocabulary ends with num_new rows that count as new."""
    from synthetic import save_model, save_tokenizer, tokenizer_spec

    save_model(folder / "model", rows=num_rows + num_new, **SHAPES[shape])
    save_tokenizer(folder / "model", tokenizer_spec(num_rows + num_new))
    (folder / "text.txt").write_text("\n\n".join(f"number {n} and its square {n * n}, as a text" for n in range(9999)))


def ours(folder: Path, device: str, precision: str, rows: str, steps: int, num_new: int) -> dict[str, Any]:
    from dataclasses import replace

    import torch

    from lepmerge.training.config import TrainConfig
    from lepmerge.training.group import Group
    from lepmerge.training.loop import StopSignal
    from lepmerge.training.session import fitted, open_session
    from lepmerge.training.setting import prepare

    config = TrainConfig.model_validate({
        "model": str(folder / "model"), "data": str(folder / "text.txt"), "block_size": BLOCK, "batch_size": 8,
        "learning_rate": 1e-4, "schedule": "constant", "warmup_steps": 0, "precision": precision, "max_tokens": 10**7,
        "output": str(folder / "out"),
    })  # fmt: skip
    setting, group = prepare(config), Group(torch.device(device))
    if rows == "new":
        first = setting.start.num_rows - num_new
        setting = replace(setting, rows={role: range(first, setting.start.num_rows) for role in setting.rows})
    fitting = fitted(setting, group)
    session = open_session(
        setting, folder / "tokens", group, StopSignal(), lambda event: None, held_out={}, fitting=fitting
    )
    learner = session.learner(1e-4)
    losses = [learner.step(0, micro_batch=session.micro_batch, between=lambda: None).loss]
    began = time.perf_counter()
    for number in range(1, steps):
        losses.append(learner.step(number, micro_batch=session.micro_batch, between=lambda: None).loss)
    seconds = time.perf_counter() - began
    return {
        "tokens_per_s": round(8 * BLOCK * (steps - 1) / seconds, 1),
        "micro_batch": session.micro_batch,
        "losses": losses,
        "estimated_bytes": fitting.total(fitting.chosen),
        "estimated_parts": fitting.parts(fitting.chosen),
    }


def trainer(folder: Path, steps: int) -> dict[str, Any]:
    """Train all rows with HF Trainer in bfloat16, with a frozen body."""
    import torch
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.bfloat16)
    model.requires_grad_(False)
    for part in (model.get_input_embeddings(), model.get_output_embeddings()):
        part.weight.requires_grad_(True)
    ids = torch.randint(1000, (8 * steps, BLOCK), generator=torch.Generator().manual_seed(0))
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"), per_device_train_batch_size=8, max_steps=steps, bf16=True, report_to=[],
        save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    run = Trainer(model=model, args=arguments, train_dataset=[{"input_ids": row, "labels": row} for row in ids])
    began = time.perf_counter()
    run.train()
    return {"tokens_per_s": round(8 * BLOCK * steps / (time.perf_counter() - began), 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--case", choices=CASES, required=True)
    parser.add_argument("--way", choices=["lepmerge", "trainer"], default="lepmerge")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rows", type=int, default=128_256)
    parser.add_argument("--new-rows", type=int, default=NUM_NEW_ROWS)
    options = parser.parse_args()
    shape, precision, rows = CASES[options.case]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_setting(folder, shape, options.rows, options.new_rows)
        if options.way == "trainer":
            found = trainer(folder, options.steps)
        else:
            found = ours(folder, options.device, precision, rows, options.steps, options.new_rows)
    import torch

    if options.device.startswith("cuda"):
        found["peak_device_bytes"] = torch.cuda.max_memory_allocated()
    print(json.dumps({"case": options.case, "way": options.way, **found}))


if __name__ == "__main__":
    main()
