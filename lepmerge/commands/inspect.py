"""lepmerge inspect: show the tensors, vocabulary, ties and padding of a model."""

from pathlib import Path
from typing import Any

import click

from lepmerge.commands.console import pairs, print_json, table
from lepmerge.commands.options import json_option


@click.command()
@click.argument("model")
@json_option
def inspect(model: str, as_json: bool) -> None:
    """Show the tensors, vocabulary and settings of a model.

    This includes tied embeddings, padding rows, chat templates and quantization. Only file headers are read, so it is
    fast for large models too.

    Of a PEFT adapter's folder: rank, targets, and the norm of the update by layer and module.

    \b
    Example:
      lepmerge inspect runs/mistral-7b-ru
    """
    from lepmerge.models.adapter_inspection import inspect_adapter, is_adapter
    from lepmerge.models.adapters import open_model
    from lepmerge.models.inspection import inspect as inspect_model

    if is_adapter(model):
        _show_adapter(inspect_adapter(Path(model).expanduser()), as_json)
        return
    found = inspect_model(open_model(model))
    if as_json:
        print_json(found)
        return
    tensors = found.pop("tensors")
    for key, value in found.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name.replace('_', ' ')} {item}" for name, item in value.items())
        click.echo(f"{key.replace('_', ' '):24}{('; '.join(value) or 'none') if isinstance(value, list) else value}")
    click.echo()
    rows = [[name, entry["dtype"], entry["shape"], entry["file"]] for name, entry in tensors.items()]
    click.echo(table(rows, header=["tensor", "dtype", "shape", "file"]))


def _show_adapter(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    layers, modules = found.pop("layers"), found.pop("modules")
    for key, value in found.items():
        shown = pairs(value) if isinstance(value, dict) else ", ".join(value) if isinstance(value, list) else value
        click.echo(f"{key.replace('_', ' '):24}{'none' if shown in ('', None) else shown}")
    click.echo("\n" + table([list(item) for item in layers.items()], header=["layer", "norm of the update"]))
    rows = [[name, *entry.values()] for name, entry in modules.items()]
    click.echo("\n" + table(rows, header=["module", "rank", "scaling", "shape", "norm"]))
