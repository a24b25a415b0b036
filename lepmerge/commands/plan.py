"""lepmerge plan: show what a recipe would read, compute and write."""

from typing import Any

import click

from lepmerge.commands.console import pairs, print_json, table
from lepmerge.commands.estimate import Size, estimated, show_estimate, show_fit
from lepmerge.commands.options import json_option, recipe_arguments
from lepmerge.progress import human_bytes


@click.command("plan")
@recipe_arguments
@click.option("--memory", metavar="SIZE", type=Size(),
              help="Say whether the run and its trainings fit a device with this much memory, e.g. 16GB.")  # fmt: skip
@click.option("--without-weights", is_flag=True,
              help="Also plan with models that lack their weights: config.json and tokenizer are enough.")  # fmt: skip
@json_option
def plan_(
    recipe: str,
    overrides: tuple[str, ...],
    output: str | None,
    memory: int | None,
    without_weights: bool,
    as_json: bool,
) -> None:
    """Show what a recipe would read, compute and write.

    Nothing is computed or written.

    \b
    Example:
      lepmerge plan recipe.yaml --set steps.0.method=delta
    """
    from lepmerge.merge.mergekit import load_recipe_or_mergekit

    show_plan(load_recipe_or_mergekit(recipe, overrides, output), as_json, memory, weights=not without_weights)


def _note_on_outline(name: str, model: Any) -> str:
    return (
        f"{name} ({model.folder}) has no weights: shapes and types are those of its config.json, and all tensors are "
        f"in one file; `lepmerge run` needs the weights"
    )


def show_plan(recipe: Any, as_json: bool, memory: int | None = None, *, weights: bool = True) -> None:
    """Print the plan of a recipe, and an estimate for each of its trainings that is not finished.

    weights: if False, models may lack their weights.
    """
    from lepmerge.merge.description import describe
    from lepmerge.merge.plan import make_plan
    from lepmerge.training.trained import outlined_models, trained_models, unfinished_trainings, untrained_models

    outlined = {} if weights else outlined_models(recipe)
    untrained = {**untrained_models(recipe, weights=weights), **outlined}
    described = describe(make_plan(recipe, trained=trained_models(recipe), untrained=untrained))
    described["notes"] += [_note_on_outline(name, model) for name, model in outlined.items()]
    trainings = unfinished_trainings(recipe)
    if as_json:
        estimates = {name: estimated(config, "auto", memory) for name, config in trainings.items()}
        print_json({**described, "trainings": estimates})
        return
    for name, config in trainings.items():
        click.echo(f"training  {name} is not trained yet. `lepmerge run --train` trains it first:")
        show_estimate(config, "auto", as_json=False, limit=memory)
        click.echo(f"The recipe, with the tables of {name} before its training (the shapes are the same):")
    click.echo(f"output    {described['output']}")
    for name, model in described["models"].items():
        click.echo(f"model     {name}: {model['folder']} ({model['rows']} rows{', tied' if model['tied'] else ''})")
    for step in described["steps"]:
        click.echo(f"step      {pairs(step)}")
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
    if memory is not None:
        show_fit(sizes["memory"], memory)
    for note in described["notes"]:
        click.echo(f"note      {note}")
