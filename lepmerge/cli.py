"""The commands: run, plan, inspect, diff, and the groups of commands/."""

import json
from collections.abc import Callable
from typing import Any

import click

import lepmerge
from lepmerge.commands.compare import compare
from lepmerge.commands.darumeru import darumeru
from lepmerge.commands.tokenizer import tokenizer
from lepmerge.commands.train import run_training, show_estimate, train, unfinished
from lepmerge.console import CommandGroup, human_bytes, progress_bar, show_note, table


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(lepmerge.__version__, prog_name="lepmerge")
def main() -> None:
    """Adapt an instruct LLM to another language: vocabulary swap, Learned Embedding Propagation, embedding arithmetic.

    \b
    lepmerge plan recipe.yaml      what a recipe would do
    lepmerge run recipe.yaml       do it
    """


main.add_command(tokenizer)
main.add_command(train)
main.add_command(compare)
main.add_command(darumeru)


def _options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


_recipe = _options(
    click.argument("recipe", type=click.Path(exists=True, dir_okay=False)),
    click.option(
        "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a value, e.g. models.base=PATH."
    ),
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
_quiet = click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")


@main.command()
@_recipe
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
@click.option("--train", "train_", is_flag=True, help="First train, or go on training, the models that need it.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
@click.option("--overwrite", is_flag=True, help="Replace the model at output.path, once the new one is complete.")
@click.option(
    "--link", type=click.Choice(["hard"]), help="Hard-link files that nothing changes instead of copying them."
)
@click.option(
    "--hash", "hash_", is_flag=True, help="Put content hashes of the inputs into the report (reads them in full)."
)
@click.option("--check", is_flag=True, help="Look for NaN and infinite values in copied tensors too.")
@_json
@_quiet
def run(
    recipe: str,
    overrides: tuple[str, ...],
    dry_run: bool,
    train_: bool,
    device: str,
    overwrite: bool,
    link: str | None,
    hash_: bool,
    check: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Carry out a recipe. A run that was interrupted goes on where it was.

    \b
    Example:
      lepmerge run recipe.yaml --set output.path=out/my-model --device cuda
    """
    from lepmerge.plan import make_plan
    from lepmerge.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    if dry_run:
        _show_plan(loaded, as_json)
        return
    from lepmerge.execute import choose_device, run_plan

    if train_:
        for config in unfinished(loaded).values():
            run_training(config, device=choose_device(device), overwrite=overwrite, quiet=quiet or as_json)
    plan = make_plan(loaded)

    total = plan.num_bytes["written"] + sum(reduction.work() for reduction in plan.reductions)
    is_done = True
    with progress_bar(total, quiet=quiet or as_json) as progress:

        def tell(what: str, num_bytes: int) -> None:
            nonlocal is_done
            is_done = False
            progress(what, num_bytes)

        folder = run_plan(plan, device=device, overwrite=overwrite, link=link, hash=hash_, check=check, progress=tell)
    if is_done and not quiet:
        show_note(f"{folder} is complete already: nothing was done")
    report = json.loads((folder / "lepmerge_report.json").read_text())
    if as_json:
        click.echo(json.dumps({"output": str(folder), **report}, indent=2, ensure_ascii=False))
    elif not quiet:
        _show_report(folder, report)


@main.command("plan")
@_recipe
@_json
def plan_(recipe: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Print what a recipe would read, compute, copy and write, and stop.

    \b
    Example:
      lepmerge plan recipe.yaml --set steps.0.method=delta
    """
    from lepmerge.recipe import load_recipe

    _show_plan(load_recipe(recipe, overrides), as_json)


@main.command()
@click.argument("model")
@_json
def inspect(model: str, as_json: bool) -> None:
    """Print the tensors, vocabulary, ties and padding of a model; only headers are read.

    \b
    Example:
      lepmerge inspect runs/mistral-7b-ru
    """
    from lepmerge.inspection import inspect as inspect_model
    from lepmerge.plan import open_model

    found = inspect_model(open_model(model))
    if as_json:
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    tensors = found.pop("tensors")
    for key, value in found.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name.replace('_', ' ')} {item}" for name, item in value.items())
        click.echo(f"{key.replace('_', ' '):16}{value if not isinstance(value, list) else '; '.join(value)}")
    click.echo()
    rows = [[name, entry["dtype"], entry["shape"], entry["file"]] for name, entry in tensors.items()]
    click.echo(table(rows, header=["tensor", "dtype", "shape", "file"]))


@main.command()
@click.argument("a")
@click.argument("b")
@click.option("--all", "all_", is_flag=True, help="List equal tensors too.")
@_json
def diff(a: str, b: str, all_: bool, as_json: bool) -> None:
    """Compare two models tensor by tensor; vocabulary tables by the rows of tokens that both have.

    Exits with 0 whether or not they differ.

    \b
    Example:
      lepmerge diff models/instruct out/instruct-ru
    """
    from dataclasses import asdict

    from lepmerge.inspection import diff as diff_models
    from lepmerge.plan import open_model

    first, second = open_model(a), open_model(b)
    with progress_bar(sum(tensor.num_bytes for tensor in second.tensors.values()), quiet=as_json) as progress:
        found = list(diff_models(first, second, progress=progress))
    if as_json:
        click.echo(json.dumps([asdict(difference) for difference in found], indent=2, ensure_ascii=False))
        return
    shown = [difference for difference in found if all_ or difference.state != "equal"]
    rows = [[d.name, d.state, *d.shapes, d.change, _pairs(d.rows)] for d in shown]
    if rows:
        click.echo(table(rows, header=["tensor", "state", "shape in A", "shape in B", "relative change", "rows"]))
    click.echo(f"{len(found) - len(shown)} further tensors are equal" if not all_ else f"{len(found)} tensors")


def _pairs(values: dict[str, Any] | None) -> str:
    plain = {key: _pairs(value) if isinstance(value, dict) else value for key, value in (values or {}).items()}
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in plain.items())


def _show_plan(recipe: Any, as_json: bool) -> None:
    """Show the plan of a recipe; where a model is not trained yet, what its training will take."""
    from lepmerge.plan import describe, make_plan

    waiting = unfinished(recipe)
    for name, config in waiting.items():
        if not as_json:
            click.echo(f"model     {name}: to be trained first, by `lepmerge run --train`; the plan stands when it is")
        show_estimate(config, "auto", as_json)
    if waiting:
        return
    described = describe(make_plan(recipe))
    if as_json:
        click.echo(json.dumps(described, indent=2, ensure_ascii=False))
        return
    click.echo(f"output    {described['output']}")
    for name, model in described["models"].items():
        click.echo(f"model     {name}: {model['folder']} ({model['rows']} rows{', tied' if model['tied'] else ''})")
    for step in described["steps"]:
        click.echo(f"step      {_pairs(step)}")
    for reduction in described["reductions"]:
        of = f" of {reduction['of']}" if reduction["of"] else ""
        click.echo(f"first     {reduction['kind']}{of}, from {human_bytes(reduction['bytes'])}")
    rows = [
        [shard["file"], shard["action"], human_bytes(shard["bytes"]), ", ".join(shard["computed"])]
        for shard in described["files"]
    ]
    click.echo(table(rows, header=["file", "action", "size", "computed tensors"]))
    sizes = described["bytes"]
    click.echo(
        f"reads {human_bytes(sizes['read'])} for {human_bytes(sizes['computed'])} computed, "
        f"copies {human_bytes(sizes['copied'])}, writes {human_bytes(sizes['written'])} "
        f"({human_bytes(described['free_disk'])} free), memory at most about {human_bytes(sizes['memory'])}"
    )
    for note in described["notes"]:
        click.echo(f"note      {note}")


def _show_report(folder: Any, report: dict[str, Any]) -> None:
    for entry in report["tables"]:
        counts = (
            {key: value for key, value in entry["rows"].items() if value} if isinstance(entry["rows"], dict) else {}
        )
        head = " ".join(str(entry[key]) for key in ("table", "method", "init") if key in entry)
        click.echo(f"{head}: {_pairs(counts)}")
        figures = {
            key: f"{entry[key]:.4g}"
            for key in ("rows_fitted", "rank", "condition", "relative_residual", "drift")
            if key in entry
        }
        if figures:
            click.echo(f"    {_pairs(figures)}")
    for note in report["notes"]:
        show_note(note)
    click.echo(f"{folder}")
