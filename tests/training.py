"""Helpers for the training tests: a small setting on disk, and a plain training to compare with."""

import json
from pathlib import Path

import pico
import torch
import torch.nn.functional as F
import yaml
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from lepmerge.training.config import TrainConfig, load_train_config
from lepmerge.training.events import ignore
from lepmerge.training.group import Group
from lepmerge.training.held_out import held_out_texts
from lepmerge.training.learner import Learner, num_steps
from lepmerge.training.loop import StopSignal
from lepmerge.training.session import Session, open_session
from lepmerge.training.setting import Setting, prepare

CPU = torch.device("cpu")


def extended(tokenizer: Tokenizer) -> Tokenizer:
    """Return the tokenizer with the letters of the Russian alphabet as new tokens behind the old ones."""
    spec = json.loads(tokenizer.to_str())
    vocab, merges = spec["model"]["vocab"], spec["model"]["merges"]
    for letter in "абвгдежзийклмнопрстуфхцчшщъыьэюя":
        ((token, _),) = tokenizer.pre_tokenizer.pre_tokenize_str(letter)
        assert len(token) == 2 and token not in vocab
        vocab[token] = max(vocab.values()) + 1
        merges.append(list(token))
    return Tokenizer.from_str(json.dumps(spec))


def write_setting(
    folder: Path, old: Tokenizer, *, tied: bool = False, new: Tokenizer | None = None, repeat: int = 6, **options
) -> Path:
    """Write base, vocabulary, text and config.yaml into a folder; return the configuration's path."""
    folder.mkdir(parents=True, exist_ok=True)
    chat = options.pop("chat", False)
    pico.save_model(folder / "base", old, tied=tied, dtype=options.pop("dtype", torch.float32), chat=chat)
    pico.save_tokenizer(new or extended(old), folder / "vocabulary")
    lines = [f"{text} {number}" for number in range(repeat) for text in pico.RUSSIAN + pico.ENGLISH]
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    (folder / "held_out.txt").write_text("\n\n".join(pico.RUSSIAN))
    config = {
        "model": "base",
        "tokenizer": "vocabulary",
        "data": "corpus.jsonl",
        "block_size": 48,
        "batch_size": 4,
        "micro_batch": 2,
        "learning_rate": 1e-2,
        "warmup_steps": 2,
        "precision": "fp32",
        "evaluate": {"data": {"ru": "held_out.txt"}, "every": 3},
        "checkpoint_every": 2,
        "output": "out",
        **options,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump({k: v for k, v in config.items() if v is not None}))
    return folder / "config.yaml"


def write_distillation(folder: Path, old: Tokenizer, **options) -> Path:
    """Write a setting in which a model with new tokens learns from itself with the old ones: text, prompts, chats."""
    data = [
        "corpus.jsonl",
        {"path": "corpus.jsonl", "cut": 60, "prompt": "О чём это?\n{text}", "weight": 0.5},
        {"path": "chats.jsonl", "kind": "chat"},
    ]
    options = {
        "objective": "distill",
        "teacher": "base",
        "data": data,
        "train": {"rows": "new"},
        "chat": True,
    } | options
    path = write_setting(folder, old, **options)
    write_chats(folder / "chats.jsonl", repeat=options.get("repeat", 2))
    return path


def write_chat_training(folder: Path, old: Tokenizer, **options) -> Path:
    """Write a setting in which a model with new tokens learns what the assistant says in chats."""
    defaults = {"objective": "chat", "data": [{"path": "chats.jsonl", "kind": "chat"}], "chat": True, "block_size": 96}
    path = write_setting(folder, old, **defaults | options)
    write_chats(folder / "chats.jsonl", repeat=options.get("repeat", 2))
    return path


def write_chats(path: Path, *, repeat: int = 2) -> None:
    """Write short chats in Russian and English, with one, two and no answers."""
    chats = []
    for number in range(repeat):
        for question, answer in zip(pico.RUSSIAN, pico.ENGLISH, strict=False):
            first = [{"role": "user", "content": f"{question[:20]} {number}"}, {"role": "bot", "content": answer[:20]}]
            second = [{"role": "user", "content": "да"}, {"role": "assistant", "content": f"{question[:12]}"}]
            chats += [first, first + second, first[:1]]
    path.write_text("".join(json.dumps({"messages": chat}, ensure_ascii=False) + "\n" for chat in chats))


def setting_of(path: Path, *overrides: str) -> Setting:
    return prepare(load_train_config(path, overrides))


def session_of(path: Path, *overrides: str) -> Session:
    """Return what training the configuration would start with."""
    setting = setting_of(path, *overrides)
    texts = held_out_texts(setting)
    return open_session(setting, path.parent / "work", Group(CPU), StopSignal(), ignore, held_out=texts)


def plain_training(config: TrainConfig, session: Session, learner: Learner, *, steps: int) -> dict[str, torch.Tensor]:
    """Return the tables after `steps` steps of a plain torch loop: whole model, autograd, full logits, AdamW.

    Rows that are not trained are restored after every step. This is exact as long as only trained rows are compared.
    """
    model = AutoModelForCausalLM.from_pretrained(session.setting.base.folder, dtype=torch.float32)
    tables = {role: table.table_VD.clone().requires_grad_() for role, table in learner.tables.items()}
    input_table = tables["input_embeddings"]
    output_table = tables.get("output_embeddings", input_table)
    spans = {role: slice(rows.start, rows.stop) for role, rows in session.setting.rows.items()}
    masters = {role: table.detach()[spans[role]].clone().requires_grad_() for role, table in tables.items()}
    trained = [master for role, master in masters.items() if len(master)]
    optimizer = torch.optim.AdamW(trained, lr=1.0, betas=config.betas, weight_decay=config.weight_decay)
    for step in range(steps):
        batch = session.blocks.batch(learner.places(step))
        hidden = model.model(
            inputs_embeds=F.embedding(batch.id_BL, input_table), position_ids=batch.position_BL, use_cache=False
        ).last_hidden_state
        loss = F.cross_entropy((hidden @ output_table.T).flatten(0, 1), batch.label_BL.flatten())
        loss.backward()
        for role, table in tables.items():
            assert table.grad is not None
            masters[role].grad = table.grad[spans[role]].clone()
            table.grad = None
        if config.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(trained, config.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = learner.learning_rate(step)
        optimizer.step()
        with torch.no_grad():
            for role, table in tables.items():
                table[spans[role]] = masters[role]
    return {role: table.detach() for role, table in tables.items()}


def stepped(session: Session, *, steps: int, micro_batch: int = 2) -> tuple[Learner, list[float]]:
    """Return a learner after some steps, with their losses."""
    learner = session.learner(session.setting.config.rates[0])
    assert steps <= num_steps(session.setting.config, session.blocks)
    losses = [learner.step(number, micro_batch=micro_batch, between=lambda: None).loss for number in range(steps)]
    return learner, losses
