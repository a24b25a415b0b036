"""Writes the table of README.md that says which model fits which GPU, from the models' configs alone.

python docs/make_fit.py
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from lepmerge.training.config import BodyPrecision
from lepmerge.training.loader import skeleton
from lepmerge.training.memory import Demand, Sizes, memory_of
from lepmerge.training.sharding import can_shard

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- written by docs/make_fit.py -->\n", "<!-- end -->\n"
MODELS = {
    "1B": "Llama-3.2-1B",
    "3B": "Llama-3.2-3B",
    "8B": "Llama-3.1-8B",
    "70B": "Llama-3.1-70B",
}
NEW_ROWS = 46_560
"""New rows of the paper's Llama-3-8B."""
DEVICES = {"12 GB": (12, 1), "16 GB": (16, 1), "24 GB": (24, 1), "80 GB": (80, 1), "8 × 80 GB": (80, 8)}
"""Title → (GB per device, processes)."""


def page() -> str:
    """Return README.md with its table as the estimates say."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin and end, "README.md has no place for the table"
    return f"{before}{BEGIN}{''.join(lines())}{END}{after}"


def lines() -> Iterator[str]:
    yield f"| model, trained rows | {' | '.join(DEVICES)} |\n|---|{'---|' * len(DEVICES)}\n"
    for title, name in MODELS.items():
        config = json.loads((ROOT / "tests/configs" / f"{name}.json").read_text())
        sizes = sizes_of(name)
        for trained in ("new", "all"):
            cells = (cell(sizes, config, trained, *device) for device in DEVICES.values())
            yield f"| {title}, {trained} | {' | '.join(cells)} |\n"


def sizes_of(name: str) -> Sizes:
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "config.json"
        shutil.copy(ROOT / "tests/configs" / f"{name}.json", path)
        return Sizes.of(skeleton(path.parent, name=name), json.loads(path.read_text()))


def cell(sizes: Sizes, config: dict, trained: str, gigabytes: int, processes: int) -> str:
    """Return the highest precision that fits and its memory; † if it needs activation checkpointing."""
    tables = 1 if config["tie_word_embeddings"] else 2
    rows = config["vocab_size"] + NEW_ROWS
    precisions: tuple[BodyPrecision, ...] = ("bf16", "int8", "nf4")
    for precision, checkpointing in product(precisions, (False, True)):
        if processes > 1 and not can_shard(precision):
            continue
        demand = Demand(
            precision=precision,
            num_rows=rows,
            num_tables=tables,
            trained=tables * (NEW_ROWS if trained == "new" else rows),
            tokens=1024,
            device="cuda",
            checkpointing=checkpointing,
            shards=processes,
        )
        needed = sum(memory_of(sizes, demand).values()) / 1e9
        if needed <= gigabytes:
            return f"{precision}{'†' * checkpointing}, {needed:.1f} GB"
    return "–"


if __name__ == "__main__":
    (ROOT / "README.md").write_text(page(), encoding="utf-8")
