"""Writes the tables of recipe.md and train.md from the schemas.

python docs/make_reference.py
"""

import re
import types
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Lt, MinLen
from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo

from lepmerge.config.schema import num_bytes
from lepmerge.merge.recipe import Recipe
from lepmerge.training.config import TrainConfig

DOCS = Path(__file__).parent
PAGES: dict[str, type[BaseModel]] = {"recipe.md": Recipe, "train.md": TrainConfig}
BEGIN, END = "<!-- written by make_reference.py -->\n", "<!-- end -->\n"
NAMES = {str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "null"}
MARKS = {
    "model": "a model's name",
    "tokenizer": "tokenizer",
    "reference": "path or Hub id",
    "path": "path",
    "template": "a model's name or path",
}
LIMITS = {Ge: ("ge", "at least"), Gt: ("gt", "above"), Lt: ("lt", "below")}


def page(name: str) -> str:
    """Return a page with its tables as the schemas say."""
    text = (DOCS / name).read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin and end, f"{name} has no place for tables"
    return f"{before}{BEGIN}{''.join(sections(PAGES[name]))}{END}{after}"


def sections(root: type[BaseModel]) -> Iterator[str]:
    """Yield the heading and table of each part of a schema, in the order in which a reader meets them."""
    done: dict[type[BaseModel], str] = {}
    waiting: list[tuple[str, type[BaseModel]]] = [("", root)]
    while waiting:
        place, model = waiting.pop(0)
        if model in done:
            continue
        operation = model.model_fields.get("op")
        title = f"`op: {get_args(operation.annotation)[0]}`" if operation else f"`{place}`" if place else "The keys"
        title += ", in its other form" if title in done.values() else ""
        done[model] = title
        yield f"\n## {title}\n\n{sentence(model)}\n\n| key | value | default | meaning |\n|---|---|---|---|\n"
        below = []
        for key, field in fields(model):
            yield f"| `{key}` | {value_of(field)} | {default_of(field)} | {described(field)} |\n"
            dotted = f"{place}.{key}" if place else key
            below += [(f"{dotted}{suffix}", part) for suffix, part in parts(field.annotation)]
        waiting = below + waiting
    yield "\n"


def fields(model: type[BaseModel]) -> list[tuple[str, FieldInfo]]:
    """Return the keys that a user writes; `op` is in the heading."""
    return [(field.alias or key, field) for key, field in model.model_fields.items() if key not in ("folder", "op")]


def parts(annotation: Any) -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield the parts of a key's value, each with the text between the key and the part."""
    suffix = {list: "[]", dict: ".NAME"}.get(get_origin(annotation), "")
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield "", annotation
    for argument in get_args(annotation):
        for more, part in parts(argument):
            yield f"{suffix}{more}", part


def sentence(model: type[BaseModel]) -> str:
    return " ".join((model.__doc__ or "").split())


def described(field: FieldInfo) -> str:
    assert field.description, field
    return escaped(" ".join(field.description.split()))


def value_of(field: FieldInfo) -> str:
    return escaped(in_words(field.annotation, tuple(field.metadata)))


def in_words(annotation: Any, metadata: tuple[Any, ...] = ()) -> str:
    """Return the allowed values: `a` | `b`, text, list of …"""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner = [mark.metadata if isinstance(mark, FieldInfo) else [mark] for mark in arguments[1:]]
        return in_words(arguments[0], tuple(chain.from_iterable(inner)))
    for mark in metadata:
        if isinstance(mark, str):
            return MARKS[mark]
        if isinstance(mark, BeforeValidator):
            return "size" if mark.func is num_bytes else "fraction"
    if origin is Literal:
        return " | ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        words = [in_words(part, metadata) for part in arguments if part is not type(None)]
        return " | ".join(dict.fromkeys(words))
    if origin is list:
        fewest = next((f" of at least {mark.min_length}" for mark in metadata if isinstance(mark, MinLen)), "")
        return f"list{fewest}: {in_words(arguments[0])}"
    if origin is dict:
        return f"name → {in_words(arguments[1])}"
    if origin is tuple:
        return f"list of {len(arguments)}: {in_words(arguments[0])}"
    if issubclass(annotation, BaseModel):
        return "mapping" if "op" not in annotation.model_fields else f"`{get_args(op_of(annotation))[0]}`"
    limits = [
        f"{word} {getattr(mark, attribute):g}"
        for mark in metadata
        for kind, (attribute, word) in LIMITS.items()
        if isinstance(mark, kind)
    ]
    return " ".join([NAMES[annotation], ", ".join(limits)]).strip()


def op_of(model: type[BaseModel]) -> Any:
    return model.model_fields["op"].annotation


def default_of(field: FieldInfo) -> str:
    """Return the default as YAML shows it; nothing where a key may be left out and then means nothing."""
    if field.is_required():
        return "needed"
    value = field.default
    if value is None or isinstance(value, BaseModel) or value == []:
        return ""
    if isinstance(value, tuple):
        value = list(value)
    return f"`{value}`" if not isinstance(value, bool) else f"`{str(value).lower()}`"


def escaped(text: str) -> str:
    return re.sub(r"(?<!\\)\|", r"\\|", text)


def main() -> None:
    for name in PAGES:
        (DOCS / name).write_text(page(name), encoding="utf-8")
        print(DOCS / name)


if __name__ == "__main__":
    main()
