"""lepmerge diff: compare two models tensor by tensor."""

from pathlib import Path

import click

from lepmerge.commands.console import pairs, print_json, progress_bar, table
from lepmerge.commands.options import json_option


@click.command()
@click.argument("a")
@click.argument("b")
@click.option("--all", "all_", is_flag=True, help="Also list the tensors that are equal.")
@json_option
def diff(a: str, b: str, all_: bool, as_json: bool) -> None:
    """Compare two models tensor by tensor.

    If the vocabularies differ, embedding tables are compared on the rows of the tokens that both models have. Two PEFT
    adapters are compared by the update of each module. The exit code is 0 whether or not the models differ.

    \b
    Example:
      lepmerge diff models/instruct out/instruct-ru
    """
    from dataclasses import asdict

    from lepmerge.models.adapter_inspection import diff_adapters, is_adapter
    from lepmerge.models.adapters import open_model
    from lepmerge.models.inspection import diff as diff_models

    if is_adapter(a) and is_adapter(b):
        found = list(diff_adapters(Path(a).expanduser(), Path(b).expanduser()))
    else:
        first, second = open_model(a), open_model(b)
        with progress_bar(sum(tensor.num_bytes for tensor in second.tensors.values()), quiet=as_json) as progress:
            found = list(diff_models(first, second, progress=progress))
    if as_json:
        print_json({"tensors": [asdict(difference) for difference in found]})
        return
    shown = [difference for difference in found if all_ or difference.state != "equal"]
    rows = [[d.name, d.state, *d.shapes, d.change, pairs(d.rows)] for d in shown]
    if rows:
        click.echo(table(rows, header=["tensor", "state", "shape in A", "shape in B", "relative change", "rows"]))
    click.echo(f"{len(found) - len(shown)} further tensors are equal" if not all_ else f"{len(found)} tensors")
