"""The real task manager with the miniature data, and tiny models for it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pico

ROOT = Path(__file__).parent.parent
DATA = Path(__file__).with_name("darumeru_data")
NAMES = (
    "multiq parus rcb rwsd use ruopenbookqa ruworldtree rucola rummlu mmlu_ru mmlu_en sum_abstractive sum_extractive "
    "cp_sent_en cp_para_en cp_sent_ru cp_para_ru"
).split()


def load(names: Sequence[str] = ("darumeru",), *, data: Path = DATA, **metadata: Any) -> dict[str, Any]:
    """Return name without `darumeru_` → task, from the YAML files of this checkout."""
    loaded = manager(data=data, **metadata).load(list(names))["tasks"]
    return {name.removeprefix("darumeru_"): task for name, task in loaded.items()}


def manager(*, data: Path = DATA, **metadata: Any) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(
        include_path=str(ROOT / "eval" / "darumeru_tasks"),
        include_defaults=False,
        metadata={"darumeru_data": str(data), **metadata},
    )


def texts() -> list[str]:
    """Return what tiny tokenizers are trained on: the miniature data's own texts."""
    parts = [path.read_text(encoding="utf-8") for path in sorted(DATA.glob("c*/test.jsonl"))]
    return [*parts, *pico.RUSSIAN, *pico.ENGLISH]
