"""Write the metrics of a comparison into model cards: a `model-index` for the Hub, and a table for readers.

Only the card changes, README.md in the model's folder. A later comparison replaces what an earlier one wrote.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.repocard_data import EvalResult, eval_results_to_model_index

from lepmerge.comparison.loading import LanguageModel
from lepmerge.corpus import is_dataset
from lepmerge.errors import OutputError
from lepmerge.models.references import CARD
from lepmerge.output.provenance import front_matter, is_ours
from lepmerge.output.staging import write_durably

BEGIN, END = "<!-- begin: lepmerge compare -->", "<!-- end: lepmerge compare -->"
FRONT = re.compile(r"---\s*\n.*?\n---\s*\n", re.DOTALL)
LOCAL = "custom"
"""The type of a text or task that is not a data set on the Hub."""
DIGITS = 4


@dataclass(frozen=True)
class Metric:
    """One value of a model card. type: its name in the model-index. dataset_type: a Hub id, or LOCAL."""

    type: str
    name: str
    dataset_type: str
    dataset: str
    value: float


def check_cards(models: Sequence[LanguageModel], reference: str | None) -> dict[str, Path]:
    """Return model name → model card, of every model but the reference. Called before anything is measured.

    Raises:
        OutputError: only one model is compared, or a model has no local card that lepmerge wrote.
    """
    first = reference or models[0].name
    others = [model for model in models if model.name != first]
    if not others:
        raise OutputError("--card writes into the cards of the compared models: name the reference and another model")
    cards = {model.name: model.reference.paths[-1] / CARD for model in others}
    for model in others:
        if model.reference.hub_id is not None or not is_ours(front_matter(cards[model.name])):
            raise OutputError(
                f"--card: {model.reference.text} has no {CARD} that lepmerge wrote: leave out this model or --card"
            )
    return cards


def write_card(card: Path, results: Mapping[str, Any], name: str) -> None:
    """Write the metrics of model `name` into its card.

    Raises:
        OutputError: the card cannot be written.
    """
    metrics = list(_metrics(results, name))
    text = card.read_text(encoding="utf-8")
    entries = [
        EvalResult(
            task_type="text-generation",
            dataset_type=metric.dataset_type,
            dataset_name=metric.dataset,
            dataset_config=metric.dataset,  # huggingface_hub joins the results of a type and configuration
            metric_type=metric.type,
            metric_name=metric.name,
            metric_value=metric.value,
        )
        for metric in metrics
    ]
    title = card.resolve().parent.name
    front = front_matter(card) | {"model-index": eval_results_to_model_index(title, entries)}
    body = re.sub(f"{BEGIN}.*?{END}\n*", "", FRONT.sub("", text, count=1), flags=re.DOTALL)
    header = f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n"
    section = f"{BEGIN}\n{_section(results, name, metrics)}\n{END}\n"
    try:
        write_durably(card, f"{header}{body.rstrip()}\n\n{section}".encode())
    except OSError as error:
        raise OutputError(f"{card} cannot be written: {error.strerror}") from error


def _metrics(results: Mapping[str, Any], name: str) -> Iterator[Metric]:
    """Yield the metrics of a model that do not depend on the machine."""
    model = results["models"][name]
    for text, found in model["texts"].items():
        values = {
            "bits_per_byte": ("bits per byte", found["bits_per_byte"]),
            "symbols_per_token": ("characters per token", found["symbols_per_token"]),
            "tokens_per_word": ("tokens per word", found["tokens_per_word"]),
        }
        if "copying" in found:
            values["exact_copies"] = ("sentences copied exactly", found["copying"]["sentences"]["exact"])
        files = results["texts"][text]["files"]
        hub_id = files[0] if is_dataset(files[0]) and not Path(files[0]).exists() else LOCAL
        for type, (label, value) in values.items():
            if value is not None and isfinite(value):  # weights may be damaged, and a short text has no sentences
                yield Metric(type, label, hub_id, text, round(value, DIGITS))
    if "chat" in model:
        label = f"answers equal to those of {results['reference']}"
        yield Metric("equal_answers", label, LOCAL, "chats", round(model["chat"]["equal_answers"], DIGITS))
    if "task" in model:
        yield Metric("accuracy", "accuracy", LOCAL, "task", round(model["task"]["accuracy"], DIGITS))


def _section(results: Mapping[str, Any], name: str, metrics: Sequence[Metric]) -> str:
    """Return the table of a model beside the reference."""
    reference = results["reference"]
    known = {(metric.dataset, metric.type): metric.value for metric in _metrics(results, reference)}
    model, size = results["models"][name], results["settings"]["max_bytes"]
    extent = f"the first {size:,} bytes of each text" if size else "whole texts"
    lines = [
        "## Evaluation",
        "",
        f"Measured by `lepmerge compare` {results['lepmerge']} on {extent}, in {model['dtype']} on "
        f"{results['device']}. Bits per byte are comparable between vocabularies; lower is better.",
        "",
        f"| measured on | metric | {reference} | this model |",
        "|---|---|---|---|",
        *(f"| {m.dataset} | {m.name} | {known.get((m.dataset, m.type), '')} | {m.value} |" for m in metrics),
    ]
    return "\n".join(lines)
