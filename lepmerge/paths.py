"""Paths and Hub ids as users write them."""

import os
import re
from difflib import get_close_matches
from pathlib import Path

HUB_ID = re.compile(r"(?P<id>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[\w./-]+))?")


def is_path(reference: str, folder: Path) -> bool:
    """Tell whether a reference, seen from a folder, is a path rather than a Hub id: it exists, or no id looks so."""
    return (
        (folder / Path(reference).expanduser()).exists()
        or reference.startswith((".", "/", "~"))
        or HUB_ID.fullmatch(reference) is None
    )


def split_adapters(reference: str, folder: Path) -> tuple[str, list[str]]:
    """Return model and adapters of `model+adapter`, seen from a folder; a path that exists is a model alone."""
    if (folder / Path(reference).expanduser()).exists():
        return reference, []
    model, *adapters = reference.split("+")
    return (model, adapters) if all((model, *adapters)) else (reference, [])


def did_you_mean(path: Path) -> str:
    """Return a question that names what lies beside a missing path and is called much the same; else nothing."""
    try:
        beside = os.listdir(path.parent)
    except OSError:
        return ""
    near = get_close_matches(path.name, [name for name in beside if not name.startswith(".")], 1)
    return f" (did you mean {near[0]}?)" if near else ""
