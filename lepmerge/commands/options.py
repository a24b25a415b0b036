"""Options that several commands share."""

from collections.abc import Callable
from typing import Any

import click


def options(*each: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a decorator that adds these options and arguments to a command, in this order."""

    def decorate(function: Any) -> Any:
        for option in reversed(each):
            function = option(function)
        return function

    return decorate


recipe_arguments = options(
    click.argument("recipe", type=click.Path(exists=True, dir_okay=False, allow_dash=True)),
    click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override a value of the recipe, e.g. models.base=PATH. Repeatable.",
    ),
    click.option(
        "-o",
        "--output",
        metavar="FOLDER",
        help="Folder of the result instead of the recipe's output.path. A mergekit configuration needs it.",
    ),
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout instead of text.")
quiet_option = click.option("-q", "--quiet", is_flag=True, help="Print only errors.")
