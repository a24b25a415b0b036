"""Measure several models against a reference model, one after another."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite, sqrt
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from lepmerge.chats import Chat, read_chats
from lepmerge.comparison.broken_tokens import check_tokens
from lepmerge.comparison.chat import agreement, answering, bits_of_answers
from lepmerge.comparison.copying import CopyItem, copy_items, copying
from lepmerge.comparison.decoding import BATCH_SIZE, Asking, together
from lepmerge.comparison.drift import drift
from lepmerge.comparison.generation import SPEED_TOKENS, measure_speed
from lepmerge.comparison.loading import LanguageModel
from lepmerge.comparison.task import ANSWER_MARGIN, read_task, solving, task_metrics
from lepmerge.comparison.texts import PIECE_BYTES, Predicted, Text, measure_texts, piece_bytes_for, read_text
from lepmerge.errors import ComparisonError
from lepmerge.models.configs import UNLIMITED
from lepmerge.output.provenance import versions
from lepmerge.progress import Progress, no_progress
from lepmerge.version import __version__

CHAT, TASK = ("chat",), ("task",)
"""Keys of `_asked`. No text can have them as its name, because names are strings."""
COPIED_SHARE = 4
"""The sentences to copy from a text have together at most this fraction (1/4) of its bytes; so do the paragraphs."""


@dataclass(frozen=True)
class Settings:
    """What to measure, and how much data to use.

    max_bytes: use only this much of the beginning of each text; None for all of it. piece_bytes: maximum size of the
    pieces that are predicted. copies: copy this many sentences and as many paragraphs of each text, 0 for none;
    sentences and paragraphs each take at most a quarter of its bytes. max_new_tokens: maximum length of an answer in a
    chat. speed: whether to time generation. batch_size: prompts that are answered at once.
    """

    column: str = "text"
    max_bytes: int | None = 200_000
    piece_bytes: int = PIECE_BYTES
    copies: int = 20
    max_new_tokens: int = 64
    speed: bool = True
    batch_size: int = BATCH_SIZE


@dataclass
class _Measurement:
    """Measures models one by one. Keeps the results of the reference, which the others are compared against."""

    reference: LanguageModel
    texts: Sequence[Text]
    copies: Mapping[str, Sequence[CopyItem]]
    prompts: Mapping[str, Sequence[Chat]]
    settings: Settings
    progress: Progress
    predicted: Mapping[str, Predicted] = field(default_factory=dict)
    answers: list[str] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)

    def of(self, model: LanguageModel) -> dict[str, Any]:
        """Return the results of a model. The reference must be measured first."""
        start = perf_counter()
        warnings = [f"{model.name}: {note}" for note in model.checkpoint.notes]
        self.progress(f"{model.name}: loading", 0, 1)
        predicted = measure_texts(model, self.texts, progress=self.progress)
        if model is self.reference:
            self.predicted = predicted
        asked = self._asked(model)
        options = {"batch_size": self.settings.batch_size, "progress": self.progress}
        answered = dict(zip(asked, together(model, list(asked.values()), **options), strict=True))
        results: dict[str, Any] = {
            "folder": str(model.folder),
            **({"adapters": [str(path) for path in model.reference.paths[1:]]} if model.reference.adapters else {}),
            "dtype": str(model.network.dtype).removeprefix("torch."),
            "rows": model.checkpoint.num_rows,
            "context": model.context,
            "chat_template": model.has_chat,
            "texts": {
                text.name: {
                    **self._text(model, text, predicted[text.name], warnings),
                    **({"copying": answered[text.name]} if text.name in answered else {}),
                }
                for text in self.texts
            },
        }
        if model is not self.reference:
            name, vocabulary = self.reference.name, self.reference.vocabulary
            results["tokens"] = check_tokens(model, predicted, self.predicted, name, vocabulary)
            warnings += results["tokens"].pop("warnings")
            results["drift"] = drift(model.checkpoint, self.reference.checkpoint)
        if CHAT in answered:
            results["chat"] = self._chat(model, *answered[CHAT])
        if TASK in answered:
            results["task"] = self._task(model, answered[TASK])
        if any(self.prompts.values()) and not model.has_chat:
            warnings.append(f"{model.name} has no chat template: no chat or task was measured")
        model.release()
        return {**results, "seconds": perf_counter() - start, "warnings": warnings}

    def _text(self, model: LanguageModel, text: Text, predicted: Predicted, warnings: list[str]) -> dict[str, Any]:
        found = {**predicted.metrics(), **_difference(predicted, self.predicted[text.name])}
        if model.context < UNLIMITED:
            found["context_characters"] = model.context * found["symbols_per_token"]
        if not isfinite(found["bits_per_byte"]):
            warnings.append(f"{model.name}: bits per byte of {text.name} are not finite: its weights are damaged")
        if self.settings.speed:
            found["generation"] = measure_speed(model, text, self.reference.vocabulary, progress=self.progress)
        return found

    def _asked(self, model: LanguageModel) -> dict[Any, Asking[Any]]:
        """Return the measures that need answers: the copies by the name of their text, CHAT, TASK."""
        asked: dict[Any, Asking[Any]] = {
            text.name: copying(model, items, f"{model.name}: copying {text.name}")
            for text in self.texts
            if (items := self.copies.get(text.name))
        }
        if model.has_chat and (prompts := self.prompts["chat"]):
            asked[CHAT] = answering(model, prompts, self.answers, max_new_tokens=self.settings.max_new_tokens)
        if model.has_chat and (prompts := self.prompts["task"]):
            asked[TASK] = solving(model, prompts)
        return asked

    def _chat(self, model: LanguageModel, answers: list[str], bits: list[float]) -> dict[str, Any]:
        if model is self.reference:
            self.answers = answers
            bits = bits_of_answers(model, self.prompts["chat"], answers, progress=self.progress)
        return agreement(answers, self.answers, bits)

    def _task(self, model: LanguageModel, right: list[bool]) -> dict[str, Any]:
        if model is self.reference:
            self.right = right
        return {**task_metrics(right, None if model is self.reference else self.right), "right": right}


def compare(
    models: Sequence[LanguageModel],
    texts: Mapping[str, Sequence[str]],
    *,
    chat: str | Path | None = None,
    task: str | Path | None = None,
    reference: str | None = None,
    settings: Settings | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Return the results, ready for JSON: `models` → name → metrics, `warnings`, `settings`, `versions`.

    texts: name → files. chat, task: files of chats (see chats.py). reference: name of the reference model, by
    default the first; it is measured first. Only one model's weights are in memory at a time. If the models have a
    process group, all its processes call this function, share out the batches and return the same results.

    >>> found = compare([load_model("instruct"), load_model("out/delta")], {"ru": ["ru.txt"]}, task="task.jsonl")
    >>> found["models"]["delta"]["texts"]["ru"]["bits_per_byte"]
    1.2592

    Raises:
        CorpusError, ComparisonError: a text or prompt file cannot be used, no model is named like `reference`, two
            models have the same name, or the reference lacks the chat template that chat and task need.
        CheckpointError: transformers cannot load a model.
    """
    settings = settings or Settings()
    first = _reference(models, reference)
    piece_bytes = piece_bytes_for(models, settings.piece_bytes)
    read = [
        read_text(name, files, column=settings.column, max_bytes=settings.max_bytes, piece_bytes=piece_bytes)
        for name, files in texts.items()
    ]
    prompts = _read_prompts(models, first, chat, task)
    copies = {
        text.name: copy_items(text, models, number=settings.copies, most_bytes=text.num_bytes // COPIED_SHARE)
        for text in read
        if settings.copies
    }
    measurement = _Measurement(first, read, copies, prompts, settings, progress)
    measured = {model.name: measurement.of(model) for model in sorted(models, key=lambda model: model is not first)}
    return {
        "lepmerge": __version__,
        "versions": versions(),
        "device": str(first.device),
        "threads": torch.get_num_threads(),
        "reference": first.name,
        "settings": {
            **asdict(settings),
            "piece_bytes": piece_bytes,
            "speed_tokens": SPEED_TOKENS,
            "chat": str(chat) if chat is not None else None,
            "task": str(task) if task is not None else None,
        },
        "texts": {text.name: _text_entry(text, texts[text.name]) for text in read},
        "models": {model.name: measured[model.name] for model in models},
        "warnings": [
            *(f"--text {text.name}: {text.skipped}" for text in read if text.skipped),
            *(warning for model in models for warning in measured[model.name]["warnings"]),
        ],
    }


def _read_prompts(
    models: Sequence[LanguageModel], first: LanguageModel, chat: str | Path | None, task: str | Path | None
) -> dict[str, list[Chat]]:
    """Return the prompts of chat and task. Check first that every model with a chat template can take them."""
    prompts = {
        "chat": list(read_chats(Path(chat))) if chat is not None else [],
        "task": read_task(Path(task)) if task is not None else [],
    }
    for option, wanted in prompts.items():
        if wanted and not first.has_chat:
            raise ComparisonError(
                f"--{option}: the reference {first.name} ({first.folder}) has no chat template: name another with "
                f"--reference, or leave out --{option}"
            )
        for model in models:
            if model.has_chat:
                _check_context(model, option, wanted)
    return prompts


def _check_context(model: LanguageModel, option: str, prompts: Sequence[Chat]) -> None:
    """Raise ComparisonError if a prompt leaves no room for an answer in the model's context."""
    lengths = [len(ids) for ids in model.encode([model.chat(prompt.messages, prompt.where) for prompt in prompts])]
    answers = [len(ids) for ids in model.encode([prompt.answer for prompt in prompts])]
    room = max(answers, default=0) + ANSWER_MARGIN if option == "task" else 1
    for prompt, length in zip(prompts, lengths, strict=True):
        if length + room > model.context:
            raise ComparisonError(
                f"--{option}: {prompt.where}: {length} tokens and an answer of {room} do not fit the context of "
                f"{model.name} ({model.context} tokens): shorten the prompt, or remove it"
            )


def _text_entry(text: Text, files: Sequence[str]) -> dict[str, Any]:
    return {
        "files": list(map(str, files)),
        "bytes": text.num_bytes,
        "characters": text.num_characters,
        "words": text.num_words,
        "pieces": len(text.pieces),
    }


def _reference(models: Sequence[LanguageModel], name: str | None) -> LanguageModel:
    names = [model.name for model in models]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ComparisonError(
            f"two models are named {twice[0]}: give names, as in old={models[names.index(twice[0])].folder}"
        )
    if name is not None and name not in names:
        raise ComparisonError(f"--reference {name}: no such model, there is {', '.join(names)}")
    return models[0 if name is None else names.index(name)]


def _difference(predicted: Predicted, reference: Predicted) -> dict[str, float]:
    """Return the difference in bits per byte from the reference, and its standard error over the pieces."""
    lengths = [len(piece.encode()) for piece in predicted.text.pieces]
    deltas = [float(a.sum() - b.sum()) for a, b in zip(predicted.bits, reference.bits, strict=True)]
    ratio, count = sum(deltas) / sum(lengths), len(lengths)
    square = sum((delta - ratio * length) ** 2 for delta, length in zip(deltas, lengths, strict=True))
    error = sqrt(square * count / max(1, count - 1)) / sum(lengths) if isfinite(square) else float("nan")
    return {"bits_per_byte_difference": ratio, "bits_per_byte_difference_error": error}
