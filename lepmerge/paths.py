"""Interpret paths and Hub ids as users write them."""

import os
import re
from difflib import get_close_matches
from pathlib import Path

HUB_ID = re.compile(r"(?P<id>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[\w./-]+))?")


def is_path(reference: str, folder: Path) -> bool:
    """Return whether a reference, relative to a folder, is a path rather than a Hub id.

    It is a path if it exists, begins like one, or does not have the form of an id.
    """
    return (
        (folder / Path(reference).expanduser()).exists()
        or reference.startswith((".", "/", "~"))
        or HUB_ID.fullmatch(reference) is None
    )


def split_adapters(reference: str, folder: Path) -> tuple[str, list[str]]:
    """Split `model+adapter` into the model and its adapters. A path that exists in the folder is a model alone."""
    if (folder / Path(reference).expanduser()).exists():
        return reference, []
    model, *adapters = reference.split("+")
    return (model, adapters) if all((model, *adapters)) else (reference, [])


def did_you_mean(path: Path) -> str:
    """Return "(did you mean X?)" if the folder of a missing path contains a similar name X, else an empty string."""
    try:
        names = os.listdir(path.parent)
    except OSError:
        return ""
    near = get_close_matches(path.name, [name for name in names if not name.startswith(".")], 1)
    return f" (did you mean {near[0]}?)" if near else ""
