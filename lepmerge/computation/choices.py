"""Choose from a registry by name, for all tables or for each table."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TypeVar

from lepmerge.config.yaml_tree import hint
from lepmerge.errors import RecipeError

Value = TypeVar("Value")


def chosen(known: Mapping[str, Value], name: str, *, what: str) -> Value:
    """Return the value with this name.

    Raises:
        RecipeError: the name is unknown.
    """
    if name not in known:
        raise RecipeError(f"there is no {what} {name!r}; {hint(get_close_matches(name, known, 1), known)}")
    return known[name]


def for_each_table(value: Value | Mapping[str, Value], tables: Iterable[str], *, what: str) -> dict[str, Value]:
    """Return table role → value. value: one value for all tables, or a mapping with one per table.

    Raises:
        RecipeError: the mapping lacks a table.
    """
    if isinstance(value, Mapping):
        return {table: chosen(value, table, what=f"{what} for the table") for table in tables}
    return dict.fromkeys(tables, value)
