"""Compare distillation at shared bytes in lepmerge and in a plain torch loop with two whole models and full logits.

    python benchmarks/distill.py [--text FILE]     default: the quickstart's text

Both do the same steps: 4 blocks of 256 tokens, only new rows trained, float32, on one CPU thread. Seconds are counted
from the second step on, memory over the whole process. Teacher and student are an untied random Llama, d = 512, 4
layers, with V = 64256 old tokens and 16000 new ones. They differ only in their embedding tables.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from inputs import russian
from measure import Report, aim, alternating, arguments_of, measured, medians, ratios, script, show_aims, table

BATCH, BLOCK = 4, 256
NUM_OLD, NUM_NEW = 64256, 16000
SMALL = 4096, 1024


def save_models(folder: Path, num_old: int, num_new: int) -> None:
    from synthetic import extended_spec, save_tokenizer, tokenizer_spec
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    set_seed(0)
    config = LlamaConfig(
        vocab_size=num_old, hidden_size=512, intermediate_size=1536, num_hidden_layers=4, num_attention_heads=8,
        tie_word_embeddings=False,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "teacher")
    old = tokenizer_spec(num_old)
    save_tokenizer(folder / "teacher", old)
    save_tokenizer(folder / "vocabulary", extended_spec(old, num_old + num_new, share=num_old / (num_old + num_new)))


def opened(text: Path, work: Path, device: str) -> Any:
    """Return the session of the benchmark. Both programs train on its batches. Only new rows are trained."""
    from dataclasses import replace

    import torch

    from lepmerge.training.config import TrainConfig
    from lepmerge.training.events import ignore
    from lepmerge.training.group import Group
    from lepmerge.training.loop import StopSignal
    from lepmerge.training.session import open_session
    from lepmerge.training.setting import prepare

    config = TrainConfig.model_validate({
        "objective": "distill", "teacher": str(work / "teacher"), "model": str(work / "teacher"),
        "tokenizer": str(work / "vocabulary"), "data": [{"path": str(text), "limit": "300KB"}], "block_size": BLOCK,
        "batch_size": BATCH, "micro_batch": BATCH, "learning_rate": 1e-4, "schedule": "constant", "warmup_steps": 0,
        "precision": "fp32", "output": "out",
    })  # fmt: skip
    setting = prepare(config)
    num_old = json.loads((work / "teacher" / "config.json").read_text())["vocab_size"]
    rows = range(num_old, setting.start.num_rows)
    setting = replace(setting, rows=dict.fromkeys(setting.rows, rows))
    return open_session(setting, work / "tokens", Group(torch.device(device)), StopSignal(), ignore, held_out={})


def seconds(device: str) -> float:
    """Return CPU seconds, or wall seconds if another device computes. Every step ends with reading its loss."""
    return time.process_time() if device == "cpu" else time.perf_counter()


def ours(text: Path, work: Path, steps: int, device: str) -> dict[str, Any]:
    session = opened(text, work, device)
    learner = session.learner(1e-4)
    losses, began = [], 0.0
    for number in range(steps):
        losses.append(learner.step(number, micro_batch=BATCH, between=lambda: None).loss)
        began = began or seconds(device)
    return {"seconds": seconds(device) - began, "losses": losses}


def plain(text: Path, work: Path, steps: int, device: str) -> dict[str, Any]:
    """Train in a plain torch loop: two whole models, full logits of both, autograd.

    AdamW updates the whole tables; the old rows are restored after every step.
    """
    import torch
    import torch.nn.functional as F
    from transformers import AutoModelForCausalLM

    session = opened(text, work, device)
    learner, config = session.learner(1e-4), session.setting.config
    batches = [session.blocks.batch(learner.places(number)).to(torch.device(device)) for number in range(steps)]
    start = {role: table.table_VD.clone() for role, table in learner.tables.items()}
    first = session.setting.rows["input_embeddings"].start
    del session, learner
    teacher, student = (
        AutoModelForCausalLM.from_pretrained(work / "teacher", dtype=torch.float32).to(device) for _ in range(2)
    )
    student.resize_token_embeddings(len(start["input_embeddings"]), mean_resizing=False)
    tables = [student.get_input_embeddings().weight, student.get_output_embeddings().weight]
    student.requires_grad_(False)
    teacher.requires_grad_(False)
    with torch.no_grad():
        for weight, rows in zip(tables, start.values(), strict=True):
            weight.copy_(rows)
            weight.requires_grad_(True)
    optimizer = torch.optim.AdamW(tables, lr=1e-4, betas=config.betas, weight_decay=config.weight_decay)
    losses, began = [], 0.0
    for batch in batches:
        lesson = batch.lesson
        assert lesson is not None
        hidden = student.model(input_ids=batch.id_BL, position_ids=batch.position_BL, use_cache=False)[0]
        with torch.inference_mode():
            of_teacher = teacher.model(input_ids=lesson.id_BT, position_ids=lesson.position_BT, use_cache=False)[0]
            p = teacher.lm_head(of_teacher).flatten(0, 1)[lesson.teacher_P].log_softmax(1)
        log_q = F.linear(hidden, teacher.lm_head.weight).flatten(0, 1)[lesson.student_P].log_softmax(1)
        divergence = (F.kl_div(log_q, p.clone(), log_target=True, reduction="none").sum(1) * lesson.weight_P).sum()
        loss = F.cross_entropy(student.lm_head(hidden).flatten(0, 1), batch.label_BL.flatten())
        loss = loss + config.distill.weight * divergence / lesson.weight_P.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(tables, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for weight, rows in zip(tables, start.values(), strict=True):
                weight[:first] = rows[:first]
        losses.append(loss.item())
        began = began or seconds(device)
    return {"seconds": seconds(device) - began, "losses": losses}


def main() -> None:
    parser = arguments_of(__doc__, runs=3)
    parser.add_argument("--text", type=Path, help="a .txt file")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--device", default="cpu", help="on a GPU, wall seconds are counted")
    for name in ("one", "work", "output"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        found = {"lepmerge": ours, "plain": plain}[options.one](
            options.text, Path(options.work), options.steps, options.device
        )
        found["tokens_per_cpu_s"] = BATCH * BLOCK * (options.steps - 1) / found["seconds"]
        Path(options.output).write_text(json.dumps(found))
        return
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}  # for the measured processes
    report = Report("distill", options, device=options.device)
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        work = Path(temporary)
        text = options.text or russian(work)
        save_models(work, *(SMALL if options.small else (NUM_OLD, NUM_NEW)))

        def run(way: str) -> dict[str, Any]:
            output = work / "figures.json"
            arguments = ["--one", way, "--steps", options.steps, "--work", work, "--output", output]
            arguments += ["--device", options.device]
            figures = measured(script("distill.py", "--text", text, *arguments), label=way)
            return {**figures, **json.loads(output.read_text())}

        raw = alternating({way: lambda way=way: run(way) for way in ("lepmerge", "plain")}, runs=options.runs)
    mid = {way: medians(runs) for way, runs in raw.items()}
    faster = sorted(ratios(raw["lepmerge"], raw["plain"], "tokens_per_cpu_s"))[options.runs // 2]
    less = sorted(ratios(raw["lepmerge"], raw["plain"], "peak_mib"))[options.runs // 2]
    rows = [[way, mid[way]["tokens_per_cpu_s"], mid[way]["peak_mib"], raw[way][0]["losses"][-1]] for way in mid]
    print(table(rows, ["", "tokens per CPU s", "peak MiB", "last loss"]))
    aims = [
        aim("time per token, lepmerge / plain", 1 / faster, 1 / 1.5),
        aim("peak memory, lepmerge / plain", less, 0.7),
    ]
    show_aims(aims)
    setting = {"batch": BATCH, "block": BLOCK, "steps": options.steps, "device": options.device}
    report.write({"setting": setting, "runs": raw, "aims": aims})


if __name__ == "__main__":
    main()
