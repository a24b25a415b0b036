"""Describe a plan as plain values, for `lepmerge plan` and `--json`."""

import shutil
from pathlib import Path
from typing import Any

from lepmerge.merge.plan import Plan


def describe(plan: Plan) -> dict[str, Any]:
    """Return the plan as plain values: what it reads, computes, copies and writes."""
    folder = next(parent for parent in plan.target.resolve().parents if parent.exists())
    return {
        "output": str(plan.target),
        "models": {
            name: {
                "folder": str(model.folder),
                "rows": model.num_rows,
                "tied": model.tied,
                "tensors": len(model.tensors),
            }
            for name, model in plan.models.items()
        },
        "steps": [step.model_dump(exclude_none=True) for step in plan.recipe.steps],
        "reductions": [
            {"kind": reduction.kind, "of": getattr(reduction, "label", None), "bytes": reduction.bytes_read}
            for reduction in plan.reductions
        ],
        "files": [
            {
                "file": shard.name,
                "action": "copy" if shard.copied_from else "write",
                "bytes": shard.num_bytes,
                "computed": [name for name in shard.tensors if name in plan.computed],
            }
            for shard in plan.shards
        ],
        "small_files": {name: "copy" if isinstance(content, Path) else "write" for name, content in plan.files.items()},
        "vocabulary_rows": {"before": plan.start.num_rows, "after": plan.final.num_rows},
        "bytes": plan.sizes,
        "free_disk": shutil.disk_usage(folder).free,
        "notes": [*plan.notes, *_notes_on_target(plan)],
    }


def _notes_on_target(plan: Plan) -> list[str]:
    """Return notes on a target that `lepmerge run` would refuse without --overwrite."""
    if not plan.target.exists() or not any(plan.target.iterdir()):
        return []
    return [f"the output {plan.target} is not empty: a run that would change it needs --overwrite"]
