"""The models of the study: for a width and a seed a base, instruct models of two strengths, adapted bases of two kinds.

The quickstart's texts and tokenizers, and its way of training, with three tasks instead of one: to name where a passage
is from, in English or in Russian, and to tell the beginning, middle or end of a paragraph. Every folder is made once; a
killed study continues after the last complete one.
"""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import make_models as quickstart
import torch
from fetch_text import FAMILIES, Document, fetch_documents
from tokenizers import Tokenizer
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

QUICKSTART = Path(__file__).resolve().parents[2] / "recipes" / "quickstart"

SIZES = {  # width: inner width, steps of base, of instruct, of adapted, learning rates of base and of new rows
    128: (384, 1000, 700, 250, 3e-3, 8e-3),
    256: (768, 1300, 900, 250, 3e-3, 8e-3),
}
STRENGTHS = {"strong": 1.0, "weak": 0.4}
"""Share of the base's learning rate with which the instruct model is tuned."""
REGIMES = ("new", "all")
QUESTION_PART = "Какая это часть абзаца?"
PARTS = ("начало", "середина", "конец")
RUSSIAN_NAMES = {
    "system": "операционная система",
    "desktop": "рабочий стол",
    "game": "игра",
    "image": "редактор изображений",
    "office": "офисные программы",
}
TASKS = ("origin_en", "origin_ru", "part")
BATCH_ROWS = 16
NUM_PROMPTS = 300
"""Held-out prompts of each task."""
BYTES_OF_TEXT = 40_000
"""Held-out text of each language."""


@dataclass(frozen=True)
class Prompt:
    """A question of a task about a passage, and its answer."""

    task: str
    text: str
    answer: str


class Texts:
    """The documents, and what is made of them for all models alike."""

    def __init__(self, cache: Path) -> None:
        documents = fetch_documents(cache)
        self.training = [document for document in documents if not document.is_held_out]
        self.held_out = [document for document in documents if document.is_held_out]

    def paragraphs(self, language: str) -> list[str]:
        return [text for document in self.training if document.language == language for text in document.paragraphs]

    @cached_property
    def tokenizers(self) -> tuple[Tokenizer, Tokenizer, Tokenizer]:
        """The old tokenizer, the same with chat tokens, and the new one."""
        russian = self.paragraphs("ru")
        old = quickstart.train_tokenizer(self.paragraphs("en") + russian[:: quickstart.RUSSIAN_SHARE])
        chat = Tokenizer.from_str(old.to_str())
        chat.add_special_tokens(quickstart.CHAT_TOKENS)
        return old, chat, quickstart.extend_tokenizer(old, russian)

    @cached_property
    def questions(self) -> dict[str, list[Prompt]]:
        """The tasks' prompts about training passages."""
        return prompts(self.training)

    def held_out_prompts(self) -> dict[str, list[Prompt]]:
        """NUM_PROMPTS prompts of each task about Russian passages of held-out documents, as many of each answer."""
        found = prompts([document for document in self.held_out if document.language == "ru"])
        generator = random.Random(0)
        chosen = {}
        for task, all_prompts in found.items():
            by_answer: dict[str, list[Prompt]] = {}
            for prompt in all_prompts:
                by_answer.setdefault(prompt.answer, []).append(prompt)
            for group in by_answer.values():
                generator.shuffle(group)
            chosen[task] = []
            while len(chosen[task]) < NUM_PROMPTS:
                for group in by_answer.values():
                    if group and len(chosen[task]) < NUM_PROMPTS:
                        chosen[task].append(group.pop())
        return chosen

    def held_out_text(self, language: str) -> list[str]:
        """About BYTES_OF_TEXT bytes of paragraphs, as many of each family."""
        generator = random.Random(1)
        lines: list[str] = []
        for family in FAMILIES:
            texts = [
                text
                for document in self.held_out
                if (document.family, document.language) == (family, language)
                for text in document.paragraphs
            ]
            generator.shuffle(texts)
            left = BYTES_OF_TEXT // len(FAMILIES)
            while texts and left > 0:
                lines.append(texts.pop())
                left -= len(lines[-1].encode())
        return lines


def prompts(documents: list[Document]) -> dict[str, list[Prompt]]:
    """Return task → prompts about every passage; the English question is asked of passages in both languages."""
    found: dict[str, list[Prompt]] = {task: [] for task in TASKS}
    for document in documents:
        for paragraph in document.paragraphs:
            pieces = quickstart.split_text(paragraph, 180)
            for place, piece in enumerate(pieces):
                passage = piece.strip()
                if len(piece) < 100:
                    continue
                ask = quickstart.QUESTIONS
                found["origin_en"].append(Prompt("origin_en", f"{ask['en']}\n{passage}", document.family))
                if document.language == "ru":
                    name = RUSSIAN_NAMES[document.family]
                    found["origin_ru"].append(Prompt("origin_ru", f"{ask['ru']}\n{passage}", name))
                    if len(pieces) > 1:
                        part = PARTS[0 if place == 0 else 2 if place == len(pieces) - 1 else 1]
                        found["part"].append(Prompt("part", f"{QUESTION_PART}\n{passage}", part))
    return found


def chat(prompt: Prompt) -> str:
    return f"<|user|>{prompt.text}<|end|><|assistant|>"


class Models:
    """The models of one width and seed, below a folder."""

    def __init__(self, folder: Path, texts: Texts, *, width: int, seed: int) -> None:
        self.folder = folder / f"d{width}-seed{seed}"
        self.texts, self.width, self.seed = texts, width, seed
        self.inner, self.base_steps, self.instruct_steps, self.adapted_steps, self.rate, self.new_rate = SIZES[width]

    @cached_property
    def base(self) -> Path:
        def make(folder: Path) -> None:
            old, _, _ = self.texts.tokenizers
            set_seed(1000 * self.seed)
            config = LlamaConfig(
                vocab_size=quickstart.NUM_OLD_TOKENS,
                hidden_size=self.width,
                intermediate_size=self.inner,
                num_hidden_layers=4,
                num_attention_heads=4,
                max_position_embeddings=512,
                tie_word_embeddings=False,
                bos_token_id=quickstart.BEGIN,
                eos_token_id=quickstart.END,
                pad_token_id=quickstart.PAD,
            )
            model = LlamaForCausalLM(config)
            stream = quickstart.encode_stream(old, self.texts.paragraphs("en") + self.texts.paragraphs("ru"))

            def compute_loss() -> torch.Tensor:
                rows = quickstart.sample_rows(stream, BATCH_ROWS)
                return _loss(model, rows, rows)

            _train(model, compute_loss, num_steps=self.base_steps, rate=self.rate)
            model.save_pretrained(folder)
            quickstart.save_tokenizer(old, folder)

        return self._made("base", make)

    def instruct(self, strength: str) -> Path:
        def make(folder: Path) -> None:
            _, tokenizer, _ = self.texts.tokenizers
            base = self.base
            set_seed(1000 * self.seed + 1)  # before the chat tokens' rows are drawn
            model = LlamaForCausalLM.from_pretrained(base)
            model.resize_token_embeddings(len(tokenizer.get_vocab()), mean_resizing=False)
            end = tokenizer.token_to_id("<|end|>")
            model.generation_config.eos_token_id = model.config.eos_token_id = end
            every = [text for document in self.texts.training for text in document.paragraphs]
            stream = quickstart.encode_stream(tokenizer, every)

            def compute_loss() -> torch.Tensor:
                rows, labels = [], []
                for _ in range(BATCH_ROWS):
                    prompt = random.choice(self.texts.questions[random.choice(TASKS)])
                    ids = tokenizer.encode(chat(prompt)).ids
                    reply = tokenizer.encode(f"{prompt.answer}<|end|>", add_special_tokens=False).ids
                    rows.append(torch.tensor(ids + reply))
                    labels.append(torch.tensor([-100] * len(ids) + reply))
                padded = pad_sequence(rows, batch_first=True, padding_value=quickstart.PAD)
                targets = pad_sequence(labels, batch_first=True, padding_value=-100)
                plain = quickstart.sample_rows(stream, BATCH_ROWS // 4)
                return _loss(model, padded, targets) + _loss(model, plain, plain)

            _train(model, compute_loss, num_steps=self.instruct_steps, rate=self.rate * STRENGTHS[strength])
            model.save_pretrained(folder)
            quickstart.save_tokenizer(tokenizer, folder, end_token="<|end|>")
            (folder / "chat_template.jinja").write_text(quickstart.CHAT_TEMPLATE)

        return self._made(f"instruct-{strength}", make)

    def adapted(self, regime: str) -> Path:
        """The base with the new vocabulary, its new or all rows trained by `lepmerge train`."""
        target = self.folder / f"adapted-{regime}"
        if not (target / "lepmerge_train.json").exists():
            _, _, new = self.texts.tokenizers
            quickstart.save_tokenizer(new, self.folder / "vocabulary")
            lines = [json.dumps({"text": text}, ensure_ascii=False) for text in self.texts.paragraphs("ru")]
            random.Random(self.seed).shuffle(lines)
            (self.folder / "train_ru.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
            config = self.folder / f"{regime}.train.yaml"
            config.write_text(
                f"model: base\ntokenizer: vocabulary\ndata: train_ru.jsonl\ntrain: {{rows: {regime}}}\n"
                f"block_size: {quickstart.NUM_CONTEXT_TOKENS}\nbatch_size: {BATCH_ROWS}\nseed: {self.seed}\n"
                f"learning_rate: {self.new_rate}\nwarmup_steps: 20\nweight_decay: 0\nprecision: bf16\n"
                f"max_tokens: {self.adapted_steps * BATCH_ROWS * quickstart.NUM_CONTEXT_TOKENS}\n"
                f"output: {target.name}\n"
            )
            print(f"{self.folder.name}: {target.name}", flush=True)
            lepmerge("train", config)
        return target

    def _made(self, name: str, make: Callable[[Path], None]) -> Path:
        target, partial = self.folder / name, self.folder / f"{name}.partial"
        if not target.exists():
            print(f"{self.folder.name}: {name}", flush=True)
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            make(partial)
            partial.rename(target)
        return target


def lepmerge(*words: object) -> None:
    """Run a lepmerge command on one thread."""
    command = [sys.executable, "-m", "lepmerge", *map(str, words), "--device", "cpu", "-q"]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def _loss(model: LlamaForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return model(input_ids=ids, labels=labels).loss


def _train(model: LlamaForCausalLM, compute_loss: Callable[[], torch.Tensor], *, num_steps: int, rate: float) -> None:
    model.train()
    quickstart.optimize(list(model.parameters()), compute_loss, num_steps=num_steps, learning_rate=rate)
