"""lepmerge darumeru: print the benchmark's table from result files of lm-evaluation-harness."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from lepmerge.commands.console import print_json, show_note, table


@click.command()
@click.argument("results", nargs=-1, required=True, type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--paper", "tables", multiple=True, type=click.Choice(["1", "2", "3", "4", "none"]),
    help="Also print the rows of this table of the paper. Repeatable; `none` prints no such rows.  [default: the "
         "tables with as many shots as the results]",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout instead of a table.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV on stdout instead of a table.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Also write charts to this PNG file.")
def darumeru(
    results: tuple[Path, ...], tables: tuple[str, ...], as_json: bool, as_csv: bool, plot: Path | None
) -> None:
    """Print the Darumeru benchmark's table from results of lm_eval.

    RESULTS are the results_*.json files that `lm_eval --output_path` writes. The model of the first file is the
    reference. + and - mark scores that are significantly higher or lower than its scores (5 % level, with the
    harness's standard errors).

    \b
    Example:
      lepmerge darumeru eval/instruct/results_*.json eval/instruct-ru/results_*.json --plot darumeru.png
    """
    from lepmerge.comparison.darumeru import COLUMNS, as_records, cells, fitting_tables, paper_rows, read_results
    from lepmerge.comparison.darumeru_data import differences, used

    if as_json and as_csv:
        raise click.UsageError("give either --json or --csv")
    measured = read_results(results)
    wanted = [int(number) for number in tables if number != "none"] if tables else fitting_tables(measured)
    rows, reference = [*measured, *paper_rows(wanted)], measured[0]
    if plot is not None:
        from lepmerge.output.plots import panels

        values = {
            label: [(row.scores[column], row.errors[column]) for row in rows] for column, label in COLUMNS.items()
        }
        several = len({row.shots for row in rows}) > 1
        names = [f"{row.model} ({row.shots}-shot)" if several else row.model for row in rows]
        panels(plot, values, names, strong=len(measured))
    records = as_records(rows, reference)
    named = [(f"{row.model}, {row.shots}-shot", row.data) for row in measured]
    notes = [*(note for row in measured for note in row.notes), *differences(named)]
    if as_json:
        print_json({"rows": records, "notes": notes})
        return
    if as_csv:
        _print_csv(records)
        return
    header = ["model", "shots", "symbols/token", *COLUMNS.values()]
    for part in table([cells(row, reference) for row in rows], header=header).split("\n\n"):
        source = ""
        head, *lines = part.split("\n")
        click.echo(head)
        for row, line in zip(rows, lines, strict=True):
            if not row.measured and row.source != source:
                source = row.source
                click.echo(f"-- {source}")
            click.echo(line)
        click.echo()
    click.echo(f"+ and -: significantly higher or lower than {reference.model}, {reference.shots}-shot (5 % level)")
    for line in used(named):
        click.echo(line)
    for note in notes:
        show_note(note)
    if plot is not None:
        click.echo(str(plot))


def _print_csv(records: Sequence[Mapping[str, Any]]) -> None:
    import csv
    import io

    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    click.echo(text.getvalue(), nl=False)
