"""Calibration in the study: students from three starts learn from the instruct model, in the ways of KINDS."""

import json
import random
from dataclasses import dataclass
from pathlib import Path

from models import QUESTION_PART, Models, lepmerge, prompts, quickstart

CALIBRATION_STEPS, CALIBRATION_ROWS = 500, 8
NUM_CHATS = 1000
"""Answered prompts of each task in calibration."""
STARTS = {  # of calibration: the step that makes the student, and the rows that learn
    "mean": ("{op: swap_vocabulary, tokenizer: vocabulary, init: mean}", "new"),
    "delta + kept": (
        "{op: propagate_embeddings, base: base, adapted: adapted, method: delta, keep_shared_rows: true}",
        "new",
    ),
    "conversion": ("{op: propagate_embeddings, base: base, adapted: adapted, method: conversion}", "all"),
}

LORA = "lora: {rank: 8, alpha: 4, modules: all-linear}\n"


@dataclass(frozen=True)
class Kind:
    """A way of calibration. `folder` begins the names of its folders.

    answers: the prompts have the teacher's answers. lora: an adapter of the body learns too. label_weight: weight of
    the answers in the cross entropy.
    """

    folder: str
    answers: bool = True
    lora: bool = False
    label_weight: float = 1.0
    steps: int = CALIBRATION_STEPS


KINDS = {
    "calibrated": Kind("calibrated"),
    "on prompts": Kind("calibrated-prompts", answers=False),
    "with LoRA": Kind("calibrated-lora", lora=True),
    "answers weighed": Kind("weighed", label_weight=20.0),
    "LoRA, answers weighed": Kind("weighed-lora", lora=True, label_weight=20.0),
    "LoRA, answers weighed, 1500 steps": Kind("weighed-lora-long", lora=True, label_weight=20.0, steps=1500),
}


def answers(models: Models, strength: str) -> Path:
    """Chats: prompts of the three tasks, made of Russian training texts, that the instruct model answered."""
    target = models.folder / f"answers-{strength}"
    if not target.exists():
        file = models.folder / "prompts.jsonl"
        generator = random.Random(models.seed)
        kinds = prompts([document for document in models.texts.training if document.language == "ru"])
        chosen = [prompt for found in kinds.values() for prompt in generator.sample(found, NUM_CHATS)]
        generator.shuffle(chosen)
        lines = [json.dumps({"prompt": prompt.text}, ensure_ascii=False) for prompt in chosen]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        lepmerge(
            *("generate", models.instruct(strength), file, "--max-new-tokens", 32, "--batch-size", 100),
            *("--keep", "repetitive", "--output", target),
        )
    return target / "chats.jsonl"


def calibration(models: Models, strength: str, regime: str, start: str, kind: str) -> tuple[Path, Path]:
    """Return the student, a model in the new vocabulary, and what it is after calibration by the instruct model.

    `start` is one of STARTS, `kind` one of KINDS. The texts are plain ones and, about as many, prompts of the three
    tasks made of training texts. The result holds the tables; with LoRA it is a whole model.
    """
    step, trained_rows = STARTS[start]
    name = "-".join([strength, *([] if start == "mean" else [regime]), start.replace(" + ", "-")])
    student = models.folder / f"student-{name}"
    way = KINDS[kind]
    target = models.folder / f"{way.folder}-{name}"
    whole = target.with_name(f"{target.name}-whole")
    if not (target / "lepmerge_train.json").exists():
        operands = f"{{base: base, instruct: instruct-{strength}, adapted: {models.adapted(regime).name}}}"
        recipe = models.folder / f"{name}.recipe.yaml"
        recipe.write_text(f"models: {operands}\nsteps: [{step}]\noutput: {{path: {student.name}}}\n")
        config = models.folder / f"{target.name}.yaml"
        config.write_text(
            f"objective: distill\nteacher: instruct-{strength}\nmodel: {student.name}\n"
            f"data:\n  - {{path: train_ru.jsonl, weight: 0.5}}\n{_prompts(models, strength, way)}"
            f"distill: {{answer_label_weight: {way.label_weight:g}}}\n"
            f"train: {{tables: both, rows: {trained_rows}}}\n"
            f"block_size: {quickstart.NUM_CONTEXT_TOKENS}\nbatch_size: {CALIBRATION_ROWS}\nseed: {models.seed}\n"
            f"learning_rate: {models.new_rate}\nwarmup_steps: 20\nweight_decay: 0\nprecision: fp32\n"
            f"max_tokens: {way.steps * CALIBRATION_ROWS * quickstart.NUM_CONTEXT_TOKENS}\n"
            f"output: {target.name}\n{LORA if way.lora else ''}"
        )
        print(f"{models.folder.name}: {target.name}", flush=True)
        if not student.exists():
            lepmerge("run", recipe)
        lepmerge("train", config, *(("--full", whole) if way.lora else ()))
    return student, whole if way.lora else target


def _prompts(models: Models, strength: str, way: Kind) -> str:
    """Return the sources of prompts, lines of a training configuration."""
    if way.answers:
        return f"  - {{path: {answers(models, strength).relative_to(models.folder)}, kind: chat}}\n"
    questions = [*quickstart.QUESTIONS.values(), QUESTION_PART]
    source = f"path: train_ru.jsonl, cut: 320, weight: {1 / len(questions):.3f}"
    return "".join(f'  - {{{source}, prompt: "{asked}\\n{{text}}"}}\n' for asked in questions)
