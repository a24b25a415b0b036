"""What was done, told twice: lepmerge_report.json for programs, README.md (the model card) for people."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lepmerge.merge.plan import Plan
from lepmerge.models.checkpoint import files_of
from lepmerge.models.model import Model
from lepmerge.output.provenance import PAPER, versions
from lepmerge.version import __version__


def report_of(
    plan: Plan, figures: Mapping[int, dict[str, Any]], not_finite: Mapping[str, int], *, device: str, hash: bool
) -> dict[str, Any]:
    """Return everything that a run found out; no timings, so that it repeats byte for byte.

    figures: id of a reduction → what it reported. not_finite: tensor → NaN and infinite values that were written.
    """
    tables = [
        {
            "operation": facts.operation,
            "table": facts.table,
            **facts.figures,
            **{key: value for reduction in facts.reductions for key, value in _of(reduction, figures).items()},
        }
        for facts in plan.final.facts
    ]
    return {
        "lepmerge": __version__,
        "versions": versions(),
        "device": device,
        "recipe": yaml.safe_load(plan.recipe.to_yaml()),
        "inputs": {name: _input(model, plan, hash=hash) for name, model in plan.models.items()},
        "content_hashed": hash,
        "tables": tables,
        "vocabulary": {"tokens": plan.final.vocabulary.size, "rows": plan.final.num_rows, "tied": plan.final.tied}
        if plan.final.vocabulary is not plan.start.vocabulary or plan.final.num_rows != plan.start.num_rows
        else {"rows": plan.final.num_rows, "tied": plan.final.tied},
        "bytes": {key: value for key, value in plan.num_bytes.items() if key != "memory"},
        "not_finite": dict(not_finite),
        "notes": [*plan.final.notes, *warnings_of(tables, not_finite)],
    }


def warnings_of(tables: list[dict[str, Any]], not_finite: Mapping[str, int]) -> list[str]:
    """Return what the user should know before using the model."""
    warned = [
        f"{table['table']}: {table['warning']}; overlap and conversion need about three"
        for table in tables
        if "warning" in table
    ]
    for table in tables:
        rows = table.get("rows")
        if isinstance(rows, Mapping) and rows.get("inexact", 0):
            warned.append(
                f"{table['table']}: {rows['inexact']} tokens hold bytes that the old vocabulary cannot spell in full"
            )
    return warned + [f"{tensor}: {count} NaN or infinite values" for tensor, count in not_finite.items()]


def model_card(plan: Plan, report: Mapping[str, Any]) -> str:
    """Return README.md: front matter for the Hub, the recipe, the inputs and the diagnostics."""
    base_models = [reference.hub_id or Path(reference.text).name for reference in _start_first(plan)]
    front = {
        "base_model": list(dict.fromkeys(base_models)),
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
        f"```yaml\n{plan.recipe.to_yaml()}```",
    ]
    if report["tables"]:
        parts += ["## Embeddings", _table(report["tables"])]
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


def _of(reduction: Any, figures: Mapping[int, dict[str, Any]]) -> dict[str, Any]:
    found = dict(figures[id(reduction)])
    if "rows" in found:
        found["rows_fitted"] = found.pop("rows")
    return found


def _start_first(plan: Plan) -> list[Any]:
    return [
        plan.references[plan.recipe.start],
        *(r for name, r in plan.references.items() if name != plan.recipe.start),
    ]


def _input(model: Model, plan: Plan, *, hash: bool) -> dict[str, Any]:
    reference = plan.references[model.name]
    described: dict[str, Any] = {"reference": reference.text, "commit": reference.commit, "files": {}}
    for file in files_of(model):
        described["files"][file.path.name] = {
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


def _table(tables: list[dict[str, Any]]) -> str:
    keys = ["operation", "table", "method", "rows_fitted", "rank", "condition", "relative_residual", "drift"]
    used = [key for key in keys if any(key in table for table in tables)]
    counts = list(
        dict.fromkeys(key for table in tables if isinstance(table.get("rows"), dict) for key in table["rows"])
    )
    lines = [used + [key.replace("_", " ") for key in counts], ["---"] * (len(used) + len(counts))]
    for table in tables:
        rows = table["rows"] if isinstance(table.get("rows"), dict) else {}
        lines.append([_shown(table.get(key)) for key in used] + [_shown(rows.get(key)) for key in counts])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _input_line(name: str, entry: Mapping[str, Any]) -> str:
    size = sum(file["size"] for file in entry["files"].values())
    commit = f", commit {entry['commit']}" if entry["commit"] else ""
    return f"- `{name}`: {entry['reference']}{commit} ({len(entry['files'])} files, {size:,} bytes)"
