"""lepmerge run: execute a recipe."""

import json
from collections.abc import Mapping
from typing import Any

import click

from lepmerge.commands.console import pairs, print_json, progress_bar, show_note
from lepmerge.commands.options import json_option, quiet_option, recipe_arguments
from lepmerge.commands.plan import show_plan
from lepmerge.commands.train import run_training


@click.command()
@recipe_arguments
@click.option("--dry-run", is_flag=True, help="Print the plan and stop, as `lepmerge plan` does.")
@click.option(
    "--train", "train_", is_flag=True, help="First start or resume the trainings of the recipe that are not finished."
)
@click.option(
    "--device", default="auto", show_default=True, help="Device to compute on: auto, cpu, cuda, cuda:N or mps."
)
@click.option("--overwrite", is_flag=True, help="Replace a model at output.path once the new one is complete.")
@click.option("--link", type=click.Choice(["hard"]), help="Hard-link unchanged files instead of copying them.")
@click.option(
    "--hash",
    "hash_",
    is_flag=True,
    help="Record content hashes of the inputs in the report. This reads every input in full.",
)
@click.option("--check", is_flag=True, help="Also look for NaN and infinite values in tensors that are only copied.")
@json_option
@quiet_option
def run(
    recipe: str,
    overrides: tuple[str, ...],
    output: str | None,
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
    """Execute a recipe and write its output model.

    An interrupted run resumes where it stopped.

    \b
    Example:
      lepmerge run recipe.yaml --output out/my-model --device cuda
      lepmerge run mergekit.yaml --output out/merged
    """
    from lepmerge.merge.mergekit import load_recipe_or_mergekit

    loaded = load_recipe_or_mergekit(recipe, overrides, output)  # a fault is reported before slow imports
    if dry_run:
        show_plan(loaded, as_json)
        return
    from lepmerge.device import choose_device
    from lepmerge.merge.execute import run_plan
    from lepmerge.merge.plan import make_plan
    from lepmerge.training.trained import trained_models, unfinished_trainings

    if train_:
        for config in unfinished_trainings(loaded).values():
            run_training(config, device=choose_device(device), overwrite=overwrite, quiet=quiet or as_json)
    plan = make_plan(loaded, trained=trained_models(loaded))

    total = plan.sizes["written"] + sum(reduction.bytes_read for reduction in plan.reductions)
    is_done = True
    with progress_bar(total, quiet=quiet or as_json) as progress:

        def watched(what: str, num_done: int, total: int | None = None, /) -> None:
            nonlocal is_done
            is_done = False
            progress(what, num_done, total)

        folder = run_plan(
            plan, device=device, overwrite=overwrite, link=link, hash=hash_, check=check, progress=watched
        )
    if is_done and not quiet:
        show_note(f"{folder} is complete already: nothing was done")
    report = json.loads(plan.report_path.read_text())
    if as_json:
        print_json({"output": str(folder), **report})
    elif not quiet:
        _show_report(folder, report)


def _show_report(folder: Any, report: dict[str, Any]) -> None:
    from lepmerge.models.table_report import TableReport

    for table in map(TableReport.of_plain, report["tables"]):
        click.echo(f"{table.table} {table.method or table.operation}: {pairs(_counts(table.rows))}")
        for model, rows in table.operands.items():
            click.echo(f"    {model}: {pairs(_counts(rows))}")
        metrics = {name: f"{value:.4g}" for name, value in table.metrics.items() if not isinstance(value, str)}
        if metrics:
            click.echo(f"    {pairs(metrics)}")
    for note in report["notes"]:
        show_note(note)
    click.echo(f"{folder}")


def _counts(rows: Mapping[str, int]) -> dict[str, int]:
    """Return only the kinds of rows that occur."""
    return {kind: count for kind, count in rows.items() if count}
