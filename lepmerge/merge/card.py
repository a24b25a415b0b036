"""Write the two reports of a run: lepmerge_report.json for programs, and README.md (the model card) for people."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lepmerge.merge.plan import Plan
from lepmerge.models.checkpoint import files_of
from lepmerge.models.model import Model
from lepmerge.models.table_report import TableReport
from lepmerge.output.provenance import PAPER, listed_in_cards, versions, without_folders
from lepmerge.tensors import Reduction, Result
from lepmerge.version import __version__


def report_of(
    plan: Plan, results: Mapping[Reduction, Result], not_finite: Mapping[str, int], *, device: str, hash: bool
) -> dict[str, Any]:
    """Return the contents of lepmerge_report.json. It has no timings, so that equal runs give equal bytes.

    not_finite: tensor → number of NaN and infinite values that were written. hash: add content hashes of the inputs.
    """
    tables = [report.measured(results) for report in plan.final.reports]
    warnings = [warning for table in tables for warning in table.all_warnings()]
    warnings += [f"{tensor}: {count} NaN or infinite values" for tensor, count in not_finite.items()]
    return {
        "lepmerge": __version__,
        "versions": versions(),
        "device": device,
        "recipe": without_folders(yaml.safe_load(plan.recipe.to_yaml())),
        "inputs": {name: _input(model, plan, hash=hash) for name, model in plan.models.items()},
        "content_hashed": hash,
        "tables": [table.plain() for table in tables],
        "vocabulary": {"tokens": plan.final.vocabulary.size, "rows": plan.final.num_rows, "tied": plan.final.tied}
        if plan.final.vocabulary is not plan.start.vocabulary or plan.final.num_rows != plan.start.num_rows
        else {"rows": plan.final.num_rows, "tied": plan.final.tied},
        "bytes": {key: value for key, value in plan.sizes.items() if key != "memory"},
        "not_finite": dict(not_finite),
        "notes": [*plan.notes, *warnings],
    }


def model_card(plan: Plan, report: Mapping[str, Any]) -> str:
    """Return README.md: front matter for the Hub, recipe, inputs and diagnostics."""
    folders = [model.folder for model in plan.models.values()]
    given = plan.recipe.output.language or []
    languages = [*([given] if isinstance(given, str) else given), *listed_in_cards(folders, "language")]
    base_models = [reference.hub_id for reference in _start_first(plan) if reference.hub_id is not None]
    base_models += listed_in_cards(folders, "base_model", only_ours=True)
    lists = {
        "language": languages,
        "base_model": base_models,
        "datasets": listed_in_cards(folders, "datasets", only_ours=True),
    }
    front = {
        **{key: list(dict.fromkeys(values)) for key, values in lists.items() if values},
        "library_name": "transformers",
        "tags": [
            "lepmerge",
            "merge",
            *(["lep"] if any(t["operation"] == "propagate_embeddings" for t in report["tables"]) else []),
        ],
    }
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---",
        f"# {plan.target.name}",
        f"Made by lepmerge {__version__} from `{plan.recipe.start}` with this recipe:",
        f"```yaml\n{yaml.safe_dump(report['recipe'], sort_keys=False, allow_unicode=True, width=100)}```",
    ]
    tables = [TableReport.of_plain(entry) for entry in report["tables"]]
    if tables:
        parts += ["## Embeddings", _markdown_table(tables)]
    if report["notes"]:
        parts += ["## Notes", "\n".join(f"- {note}" for note in report["notes"])]
    parts += ["## Inputs", "\n".join(_input_line(name, entry) for name, entry in report["inputs"].items())]
    hashed = (
        "Content hashes are in"
        if report["content_hashed"]
        else "Contents were not hashed (`--hash` does); headers are in"
    )
    parts += [f"{hashed} `lepmerge_report.json`. Method: Learned Embedding Propagation, {PAPER}."]
    return "\n\n".join(parts) + "\n"


def _start_first(plan: Plan) -> list[Any]:
    return [
        plan.references[plan.recipe.start],
        *(r for name, r in plan.references.items() if name != plan.recipe.start),
    ]


def _input(model: Model, plan: Plan, *, hash: bool) -> dict[str, Any]:
    reference = plan.references[model.name]
    described: dict[str, Any] = {"reference": without_folders(reference.text), "commit": reference.commit, "files": {}}
    if reference.adapters:
        described["adapters"] = [
            {"reference": without_folders(adapter.text), "commit": adapter.commit, "scale": scale}
            for adapter, scale in reference.adapters
        ]
    for file in files_of(model):
        inside = file.path.parent == model.folder
        described["files"][file.path.name if inside else f"{file.path.parent.name}/{file.path.name}"] = {
            "size": file.size,
            "header_sha256": hashlib.sha256(file.header).hexdigest(),
            **({"sha256": _sha256(file.path)} if hash else {}),
        }
    return described


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(8 << 20):
            digest.update(block)
    return digest.hexdigest()


def _markdown_table(tables: Sequence[TableReport]) -> str:
    """Return a Markdown table with one line per embedding table: how its rows were made, and its metrics."""
    columns: dict[str, list[Any]] = {
        "operation": [table.operation for table in tables],
        "table": [table.table for table in tables],
        "method": [f"`{table.method}`" if table.method else None for table in tables],
    }
    for key in dict.fromkeys(key for table in tables for key in table.metrics if key != "solver"):
        columns[key] = [table.metrics.get(key) for table in tables]
    for key in dict.fromkeys(key for table in tables for key in table.rows):
        columns[f"{key} rows"] = [table.rows.get(key) for table in tables]
    lines = [
        [name.replace("_", " ") for name in columns],
        ["---"] * len(columns),
        *([_shown(value) for value in line] for line in zip(*columns.values(), strict=True)),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _input_line(name: str, entry: Mapping[str, Any]) -> str:
    size = sum(file["size"] for file in entry["files"].values())
    commit = f", commit {entry['commit']}" if entry["commit"] else ""
    added = [f" + {adapter['scale']:g} × {adapter['reference']}" for adapter in entry.get("adapters", [])]
    return f"- `{name}`: {entry['reference']}{commit}{''.join(added)} ({len(entry['files'])} files, {size:,} bytes)"
