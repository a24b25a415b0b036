"""lepmerge inspect: tensors, vocabulary, ties and padding of a model."""

import json

import click

from lepmerge.commands.console import table
from lepmerge.commands.options import json_option


@click.command()
@click.argument("model")
@json_option
def inspect(model: str, as_json: bool) -> None:
    """Print the tensors, vocabulary, ties, padding, chat templates and quantization of a model; only headers are read.

    \b
    Example:
      lepmerge inspect runs/mistral-7b-ru
    """
    from lepmerge.models.adapters import open_model
    from lepmerge.models.inspection import inspect as inspect_model

    found = inspect_model(open_model(model))
    if as_json:
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    tensors = found.pop("tensors")
    for key, value in found.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name.replace('_', ' ')} {item}" for name, item in value.items())
        click.echo(f"{key.replace('_', ' '):24}{('; '.join(value) or 'none') if isinstance(value, list) else value}")
    click.echo()
    rows = [[name, entry["dtype"], entry["shape"], entry["file"]] for name, entry in tensors.items()]
    click.echo(table(rows, header=["tensor", "dtype", "shape", "file"]))
