"""JSON files: read as valid Unicode, written with indentation."""

import json
from collections.abc import Mapping
from json.encoder import encode_basestring
from pathlib import Path
from typing import Any

from lepmerge.errors import LepmergeError


def parse_json(text: str, **hooks: Any) -> Any:
    """Return the value of a JSON text. hooks: options of json.loads.

    Raises:
        ValueError: the text is not JSON, or contains characters that are not valid Unicode.
        RecursionError: the text is nested too deeply.
    """
    value = json.loads(text, **hooks)
    if "\\ud" in text.lower():  # an escaped surrogate, perhaps without its other half
        json.dumps(value, ensure_ascii=False).encode()
    return value


def read_json_file(path: Path, error: type[LepmergeError]) -> Any:
    """Return the contents of a JSON file, or raise `error` if it cannot be read or parsed."""
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as fault:
        raise error(f"{path} is not readable JSON: {fault}; download it again, or restore it") from fault


def to_json(value: Mapping[str, Any]) -> bytes:
    """Return json.dumps(value, indent=2, ensure_ascii=False) and a line end. json has no fast way to indent."""
    return (_indented(value, "\n") + "\n").encode()


def _indented(value: Any, outer: str) -> str:
    if type(value) is str:
        return encode_basestring(value)
    if type(value) is int:
        return str(value)
    inner = outer + "  "
    if isinstance(value, dict) and value:
        items = [f"{encode_basestring(key)}: {_indented(item, inner)}" for key, item in value.items()]
        return f"{{{inner}{f',{inner}'.join(items)}{outer}}}"
    if isinstance(value, list | tuple) and value:
        return f"[{inner}{f',{inner}'.join([_indented(item, inner) for item in value])}{outer}]"
    return json.dumps(value, ensure_ascii=False)
