"""Provenance for reports and cards: the paper, versions and languages, without paths of this machine."""

import platform
import re
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

PAPER = "https://arxiv.org/abs/2412.21140"
PACKAGES = ("torch", "tokenizers", "transformers", "safetensors")


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def without_folders(value: Any) -> Any:
    """Replace each absolute path in plain values by its last part. Cards are read on other machines."""
    if isinstance(value, dict):
        return {key: without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_folders(item) for item in value]
    if isinstance(value, str) and value.startswith(("/", "~")):
        return Path(value).name
    return value


NOT_VALUES = (ValueError, AttributeError, KeyError, IndexError, RecursionError)
"""What PyYAML raises for values such as 2024-13-01 and !!int "", and for deep nesting."""


def front_matter(card: Path) -> dict[str, Any]:
    """Return the YAML at the beginning of a model card. It is empty if there is none, or if it is broken."""
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    front = re.match(r"---\s*\n(.*?\n)---\s*\n", text, re.DOTALL)
    try:
        values = yaml.safe_load(front[1]) if front else None
    except (yaml.YAMLError, *NOT_VALUES):  # a broken card of an input does no harm
        values = None
    return values if isinstance(values, dict) else {}


def is_ours(front: Mapping[str, Any]) -> bool:
    """Return whether the front matter of a model card says that lepmerge wrote it."""
    tags = front.get("tags")
    return isinstance(tags, list) and "lepmerge" in tags


def listed_in_cards(folders: Iterable[Path], key: str, *, only_ours: bool = False) -> list[str]:
    """Return the entries under a key of the model cards in these folders, in order and without duplicates.

    only_ours: leave out cards that lepmerge did not write.
    """
    found: dict[str, None] = {}
    for folder in folders:
        card = front_matter(folder / "README.md")
        listed = card.get(key)
        if only_ours and not is_ours(card):
            continue
        named = [listed] if isinstance(listed, str) else listed if isinstance(listed, list) else []
        found |= dict.fromkeys(name for name in named if isinstance(name, str))
    return list(found)
