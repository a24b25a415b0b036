"""Write the output of a training: the trained weights with tokenizer, card, metrics and curves.

embeddings.safetensors    the complete tables; with this file name no loader mistakes the folder for a whole model
adapter_model.safetensors with `lora`, instead: a PEFT adapter, which includes the tables that the base model lacks
adapter_config.json       its configuration
lepmerge_train.json       the configuration and the results
metrics.jsonl             the metrics, one line per step
speed.jsonl               seconds and memory, one line per step
curves.png                loss, and bits per byte of held-out text
"""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lepmerge.corpus import is_dataset
from lepmerge.json_text import to_json
from lepmerge.models.adapter_config import CONFIG
from lepmerge.models.adapter_file import WEIGHTS
from lepmerge.models.checkpoint import EMBEDDINGS
from lepmerge.models.configs import read_json
from lepmerge.models.references import Reference
from lepmerge.models.safetensors_io import DTYPE_NAMES, build_header, to_bytes
from lepmerge.output.carried_files import carried_files
from lepmerge.output.plots import curves
from lepmerge.output.provenance import PAPER, versions, without_folders
from lepmerge.output.staging import Staging, write_all
from lepmerge.tensors import blocks, workspace_for
from lepmerge.training.config import TrainConfig
from lepmerge.training.learner import Learner
from lepmerge.training.loop import Track
from lepmerge.training.setting import Setting
from lepmerge.training.state import masters_in
from lepmerge.version import __version__

REPORT, METRICS, SPEED, CURVES, CARD = "lepmerge_train.json", "metrics.jsonl", "speed.jsonl", "curves.png", "README.md"
TERMS = ("cross_entropy", "divergence")
"""The terms of a loss that has several."""


def write_output(
    setting: Setting, learner: Learner, staging: Staging, track: Track, sweep: Sequence[Mapping[str, Any]]
) -> None:
    """Write the finished files into the staging folder."""
    adapter = learner.body.adapter
    staging.write_file(EMBEDDINGS if adapter is None else WEIGHTS, _weights_writer(setting, learner, track))
    lines = track.lines()
    report = report_of(setting, learner, lines, sweep)
    files: dict[str, bytes | Path] = dict(carried_files(setting.base, setting.start, dtype=None))
    files["config.json"] = to_json(setting.start.config)
    if adapter is not None:
        base_name = setting.reference.hub_id
        config = adapter.saved_config(_table_keys(setting, learner), tied=setting.start.tied, base_name=base_name)
        files[CONFIG] = to_json(config)
    files |= {METRICS: track.metrics, SPEED: track.speed, REPORT: to_json(report), CARD: card_of(report).encode()}
    if importlib.util.find_spec("matplotlib"):
        draw_curves(staging.folder / CURVES, lines)
        files[CURVES] = staging.folder / CURVES
    for name, content in sorted(files.items()):
        staging.write_bytes(name, content if isinstance(content, bytes) else content.read_bytes())


def finished_report(target: Path) -> dict[str, Any] | None:
    """Return the report of the finished training in a folder, or None if there is none."""
    is_whole = (target / EMBEDDINGS).exists() or (target / WEIGHTS).exists()
    return (read_json(target / REPORT) or None) if is_whole else None


def is_finished(config: TrainConfig) -> bool:
    """Return whether the output folder holds the finished training of this very configuration."""
    report = finished_report(config.target)
    return report is not None and report.get("config") == config.plain()


def report_of(
    setting: Setting, learner: Learner, lines: Sequence[Mapping[str, Any]], sweep: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the results of a training. Timings are left out, so that a repeated run gives the same bytes."""
    evaluated = [line for line in lines if "bits_per_byte" in line]
    return {
        "lepmerge": __version__,
        "versions": versions(),
        "fingerprint": setting.fingerprint,
        "config": setting.config.plain(),
        "model": _reference(setting.reference),
        **({"teacher": _reference(setting.teacher_reference)} if setting.teacher_reference else {}),
        **({"data": _data(setting, learner)} if setting.config.objective != "text" else {}),
        **({"datasets": datasets} if (datasets := _datasets(setting)) else {}),
        "rows": {
            "total": setting.start.num_rows,
            "trained": {role: [rows.start, rows.stop] for role, rows in setting.rows.items()},
        },
        **({"lora": learner.body.adapter.sizes} if learner.body.adapter else {}),
        "tables": [report.plain() for report in setting.start.reports],
        "learning_rate": learner.rate,
        "steps": lines[-1]["step"],
        "tokens": lines[-1].get("tokens", 0),
        "loss": _losses(lines, "loss"),
        **{term: _losses(lines, term) for term in TERMS if term in lines[-1]},
        "bits_per_byte": {"first": evaluated[0]["bits_per_byte"], "last": evaluated[-1]["bits_per_byte"]}
        if evaluated
        else {},
        **({"sweep": list(sweep)} if sweep else {}),
    }


def _reference(reference: Reference) -> dict[str, Any]:
    return {"reference": reference.text, "commit": reference.commit, "local": reference.hub_id is None}


def _datasets(setting: Setting) -> list[str]:
    """Return the data sets of the Hub that were trained on."""
    config = setting.config
    paths = [source.path for source in config.data if not config.resolve(source.path).exists()]
    return list(dict.fromkeys(path for path in paths if is_dataset(path)))


def _data(setting: Setting, learner: Learner) -> list[dict[str, Any]]:
    """Return for each source its number of blocks and what was skipped."""
    read = zip(setting.config.data, (source.tokens for source in learner.blocks.sources), strict=True)
    return [{"path": source.path, "blocks": t.num_blocks, "skipped": t.skipped} for source, t in read]


def _losses(lines: Sequence[Mapping[str, Any]], key: str) -> dict[str, float]:
    """Return the mean per token over the first and the last tenth of the steps. A single step would be too noisy."""
    steps = [line for line in lines if key in line]
    seen = [0, *(line["tokens"] for line in steps)]
    count = -(-len(steps) // 10)

    def mean(start: int, stop: int) -> float:
        total = sum(steps[i][key] * (seen[i + 1] - seen[i]) for i in range(start, stop))
        return round(total / (seen[stop] - seen[start]), 4)

    return {"first": mean(0, count), "last": mean(len(steps) - count, len(steps))}


def card_of(report: Mapping[str, Any]) -> str:
    """Return the text of README.md in the output folder."""
    config = report["config"]
    hub_id = {} if report["model"]["local"] else {"base_model": report["model"]["reference"].partition("@")[0]}
    is_adapter = "lora" in report
    library = {"library_name": "peft"} if is_adapter else {}
    datasets = {"datasets": report["datasets"]} if "datasets" in report else {}
    front = {**hub_id, **datasets, **library, "tags": ["lepmerge", "lep", "lora" if is_adapter else "embeddings"]}
    shown = {key: without_folders(value) for key, value in config.items() if value is not None}
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---",
        *_what(report),
        f"{report['steps']} steps, {report['tokens']:,} tokens, highest rate {report['learning_rate']:g}. "
        f"{_trained(report)}. "
        f"Loss {report['loss']['first']:.4f} → {report['loss']['last']:.4f} nats per token (means of the first and the "
        f"last tenth of the steps).{_terms(report)}",
    ]
    if report["bits_per_byte"]:
        first, last = report["bits_per_byte"]["first"], report["bits_per_byte"]["last"]
        table = ["| held-out text | bits per byte before the first step | after the last |", "|---|---|---|"]
        table += [f"| {name} | {first[name]:.4f} | {last[name]:.4f} |" for name in first]
        parts.append("\n".join(table))
    if "sweep" in report:
        table = ["| rate | steps | bits per byte |", "|---|---|---|"]
        table += [
            f"| {entry['learning_rate']:g} | {entry['steps']} | "
            f"{', '.join(f'{name} {bits:.4f}' for name, bits in entry['bits_per_byte'].items())} |"
            for entry in report["sweep"]
        ]
        parts += ["## Rates tried", "\n".join(table)]
    parts += [
        f"![Loss and bits per byte]({CURVES})",
        f"```yaml\n{yaml.safe_dump(shown, sort_keys=False, allow_unicode=True, width=100)}```",
        f"Method: Learned Embedding Propagation, {PAPER}.",
    ]
    return "\n\n".join(parts) + "\n"


def _what(report: Mapping[str, Any]) -> list[str]:
    """Return the title of the card, and the paragraph that says what the folder holds."""
    trained = f"Trained by lepmerge {report['lepmerge']} {_how(report)}; the rest of the model was frozen."
    if "lora" not in report:
        holds = "The folder holds embeddings only: `lepmerge run` puts them into a model by a recipe."
        return ["# Embeddings for another vocabulary", f"{trained} {holds}"]
    holds = (
        "The folder is an adapter for PEFT, with the embeddings that the model lacks. In a recipe of lepmerge it is "
    )
    return [
        "# LoRA adapter",
        f"{trained} {holds} `{{path: BASE, adapter: FOLDER}}`; PEFT needs a base of as many rows.",
    ]


def _trained(report: Mapping[str, Any]) -> str:
    """Return what was trained: rows of tables, and the matrices of an adapter."""
    rows = report["rows"]
    parts = [
        f"{role.replace('_', ' ')}: rows {first} to {stop - 1} of {rows['total']}"
        if stop > first
        else f"{role}: frozen"
        for role, (first, stop) in rows["trained"].items()
    ]
    if "lora" in report:
        sizes, lora = report["lora"], report["config"]["lora"]
        parts.append(
            f"LoRA of rank {lora['rank']}, alpha {lora['alpha']:g}: {sizes['modules']} modules, "
            f"{sizes['parameters']:,} parameters"
        )
    return "; ".join(parts)


def _named(reference: Mapping[str, Any]) -> str:
    """Return a model's name without the folders of this machine."""
    return Path(reference["reference"]).name if reference["local"] else reference["reference"]


def _how(report: Mapping[str, Any]) -> str:
    """Return the phrase of the card that says how the model was trained."""
    if "teacher" in report:
        return f"to predict what {_named(report['teacher'])} predicts, in the old vocabulary, of the same text"
    return {"text": "on plain text", "chat": "on the assistant's part of chats"}[report["config"]["objective"]]


def _terms(report: Mapping[str, Any]) -> str:
    found = (
        f" {term.replace('_', ' ').capitalize()} {report[term]['first']:.4f} → {report[term]['last']:.4f}."
        for term in TERMS
        if term in report
    )
    return "".join(found)


def draw_curves(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Draw the loss of every step, and bits per byte at the steps that measured them."""
    steps = [line["step"] for line in lines if "loss" in line]
    terms = [term for term in TERMS if term in lines[-1]]
    panels = {
        "loss, nats per token": {
            "" if term == "loss" and not terms else term: (steps, [line[term] for line in lines if term in line])
            for term in ("loss", *terms)
        }
    }
    evaluated = [line for line in lines if "bits_per_byte" in line]
    if evaluated:
        at = [line["step"] for line in evaluated]
        names = evaluated[0]["bits_per_byte"]
        panels["bits per byte, held out"] = {
            name: (at, [line["bits_per_byte"][name] for line in evaluated]) for name in names
        }
    curves(path, panels, x="step")


def _table_keys(setting: Setting, learner: Learner) -> dict[str, str]:
    """Return key in the file of weights → role of a table.

    An adapter includes the tables that were trained, or all if the vocabulary is new.
    """
    adapter, start = learner.body.adapter, setting.start
    if adapter is None:
        return {name: role for role, name in start.tables.items()}
    is_new = start.vocabulary is not setting.base.vocabulary
    return adapter.table_keys([role for role, rows in setting.rows.items() if rows or is_new], tied=start.tied)


def _weights_writer(setting: Setting, learner: Learner, track: Track) -> Callable[[int], dict[str, Any]]:
    matrices = learner.body.adapter.parameters if learner.body.adapter else {}
    roles = _table_keys(setting, learner)
    tables = {key: setting.start.table(role) for key, role in roles.items()}
    shapes = {key: (DTYPE_NAMES[matrix.dtype], tuple(matrix.shape)) for key, matrix in matrices.items()}
    shapes |= {key: (DTYPE_NAMES[stored.dtype], tuple(stored.shape)) for key, stored in tables.items()}

    def write(descriptor: int) -> dict[str, Any]:
        write_all(descriptor, build_header(shapes, {"format": "pt"}).encoded)
        for matrix in matrices.values():
            write_all(descriptor, to_bytes(matrix.detach()))
        for role in roles.values():
            trained, stored = learner.tables[role], setting.start.table(role)
            masters = masters_in(track.checkpoint, role) if trained.is_trained else None
            workspace = workspace_for(stored)
            for block in blocks(stored):
                write_all(descriptor, to_bytes(trained.final_rows(block, stored, workspace, masters)))
        return {}

    return write
