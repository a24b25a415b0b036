"""The meaning of a text in a configuration: a path, a model or a tokenizer. A field declares it with a marker."""

from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

FilePath = Annotated[str, "path"]
"""A path relative to the file in which it is written."""
Reference = Annotated[str, "reference"]
"""A path or a Hub id."""
ModelName = Annotated[str, "model"]
"""A name under `models` of the recipe. The operation receives the model."""
TokenizerReference = Annotated[str, "tokenizer"]
"""A name under `models`, a path or a Hub id. The operation receives the vocabulary."""
TemplateReference = Annotated[str, "template"]
"""A name under `models`, or the path of a .jinja file."""

Place = tuple[int | str, ...]


def marked_texts(schema: Any, value: Any, place: Place = ()) -> Iterator[tuple[Place, str, str]]:
    """Yield (place, marker, text) for every text in a plain value whose field in the schema has a marker.

    Keys of mappings are included. If a schema has SHORT_FORM, a text may take its place, as in `base: some/folder`.
    """
    origin, arguments = get_origin(schema), get_args(schema)
    if origin is Annotated:
        markers = [argument for argument in arguments[1:] if isinstance(argument, str)]
        if markers and isinstance(value, str):
            yield place, markers[0], value
        yield from marked_texts(arguments[0], value, place)
    elif origin in (Union, UnionType):
        for member in arguments:
            yield from marked_texts(member, value, place)
    elif origin is list and isinstance(value, list):
        for number, item in enumerate(value):
            yield from marked_texts(arguments[0], item, (*place, number))
    elif origin is dict and isinstance(value, dict):
        for key, item in value.items():
            yield from marked_texts(arguments[0], key, (*place, key))
            yield from marked_texts(arguments[1], item, (*place, key))
    elif isinstance(schema, type) and issubclass(schema, BaseModel):
        yield from _in_fields(schema, value, place)


def schemas_below(schema: Any) -> Iterator[type[BaseModel]]:
    """Yield the schemas in the fields of a schema, recursively."""
    for field in schema.model_fields.values():
        waiting = [field.annotation]
        while waiting:
            annotation = waiting.pop()
            waiting += get_args(annotation)
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                yield annotation
                yield from schemas_below(annotation)


def _in_fields(schema: type[BaseModel], value: Any, place: Place) -> Iterator[tuple[Place, str, str]]:
    short_form = getattr(schema, "SHORT_FORM", None)
    if isinstance(value, str) and short_form is not None:
        yield from marked_texts(_annotated(schema.model_fields[short_form]), value, place)
    if not isinstance(value, dict):
        return
    for name, field in schema.model_fields.items():  # the value belongs to another member of the union
        if get_origin(field.annotation) is Literal and name in value and value[name] not in get_args(field.annotation):
            return
    for name, field in schema.model_fields.items():
        if name in value:
            yield from marked_texts(_annotated(field), value[name], (*place, name))


def _annotated(field: FieldInfo) -> Any:
    return Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
