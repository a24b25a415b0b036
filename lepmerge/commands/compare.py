"""lepmerge compare: measure what an adaptation gained and what it cost."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from lepmerge.commands.console import print_json, table


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="[NAME=]MODEL...")
@click.option("--text", "texts", multiple=True, required=True, metavar="[NAME=]FILE",
              help="Text to measure on: .txt, .jsonl or .parquet file (also .gz, .zst), folder or glob. "
                   "Repeatable.")  # fmt: skip
@click.option("--chat", type=click.Path(dir_okay=False), metavar="FILE",
              help="Compare the answers to these prompts: a .jsonl file, one {messages} per line.")  # fmt: skip
@click.option("--task", type=click.Path(dir_okay=False), metavar="FILE",
              help="Measure the accuracy on this task: a .jsonl file, one {messages, answer} per line.")  # fmt: skip
@click.option("--reference", metavar="NAME", help="Model that the others are compared against.  [default: the first]")
@click.option(
    "--device", default="auto", show_default=True, help="Device to compute on: auto, cpu, cuda, cuda:N or mps."
)
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]),
              help="Data type of the weights.  [default: float32 on the CPU, otherwise as stored]")  # fmt: skip
@click.option(
    "--max-bytes", default="200kB", show_default=True, metavar="SIZE", help="Measure only the beginning of each text."
)
@click.option(
    "--column", default="text", show_default=True, help="Field of .jsonl and .parquet rows that holds the text."
)
@click.option("--copies", default=20, show_default=True, type=click.IntRange(min=0),
              help="Ask for copies of this many sentences and as many paragraphs of each text. Sentences and "
                   "paragraphs each take at most a quarter of the text.")  # fmt: skip
@click.option("--max-new-tokens", default=64, show_default=True, type=click.IntRange(min=1),
              help="Maximum length of an answer to --chat, in tokens.")  # fmt: skip
@click.option(
    "--batch-size", default=32, show_default=True, type=click.IntRange(min=1), help="Prompts that are answered at once."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout instead of tables.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Also write charts to this PNG file.")
@click.option(
    "--html", type=click.Path(dir_okay=False, path_type=Path), help="Also write a report as a single HTML file."
)
@click.option("--card", is_flag=True,
              help="Also write the metrics into the model card (README.md) of each model except the "
                   "reference.")  # fmt: skip
@click.option("-q", "--quiet", is_flag=True, help="Print only errors.")
def compare(
    models: tuple[str, ...],
    texts: tuple[str, ...],
    chat: str | None,
    task: str | None,
    reference: str | None,
    device: str,
    dtype: str | None,
    max_bytes: str,
    as_json: bool,
    plot: Path | None,
    html: Path | None,
    card: bool,
    quiet: bool,
    **settings: Any,
) -> None:
    """Measure what an adaptation gained and what it cost.

    Each MODEL is compared against the reference model: bits per byte on texts, generation speed, exact copying,
    answers to chats, accuracy on a task, drift of the embeddings, broken tokens. With `accelerate launch`, several
    processes share out texts and prompts, and the first one reports.

    \b
    Example:
      lepmerge compare old=models/instruct out/delta --text ru.txt --text en.txt --task task.jsonl --html report.html
      accelerate launch -m lepmerge compare old=models/instruct out/delta --text ru.txt
    """
    from lepmerge.comparison.report import check_writable
    from lepmerge.config.schema import num_bytes

    try:
        size = num_bytes(max_bytes)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--max-bytes") from error
    for path in (plot, html):
        if path is not None:
            check_writable(path)
    from lepmerge.comparison.compare import Settings
    from lepmerge.comparison.compare import compare as compare_models

    loaded = _loaded(models, device, dtype)
    cards = _cards(loaded, reference) if card else {}
    files = _files_of(texts)
    chosen = Settings(max_bytes=size, **settings)
    with _together(loaded[0].group, quiet) as progress:
        results = compare_models(
            loaded, files, chat=chat, task=task, reference=reference, settings=chosen, progress=progress
        )
    if loaded[0].group.rank > 0:  # the main process reports
        return
    _write(results, plot, html, cards)
    if as_json:
        print_json(results)
    elif not quiet:
        show(results)
        for path in (plot, html, *cards.values()):
            if path is not None:
                click.echo(str(path))


def _loaded(models: tuple[str, ...], device: str, dtype: str | None) -> list[Any]:
    import torch
    from transformers.utils.logging import disable_progress_bar

    from lepmerge.comparison.loading import load_model
    from lepmerge.device import choose_device
    from lepmerge.training.processes import launched_group

    disable_progress_bar()
    group = launched_group(choose_device(device))
    weights = getattr(torch, dtype) if dtype else None
    named = [_named(model, Path(model.rstrip("/")).name) for model in models]
    return [load_model(folder, name=name, dtype=weights, group=group) for name, folder in named]


def _files_of(texts: tuple[str, ...]) -> dict[str, list[str]]:
    """Return name → files of the texts."""
    files: dict[str, list[str]] = {}
    for text in texts:
        name, path = _named(text, Path(text).name.split(".")[0])
        files.setdefault(name, []).append(path)
    return files


def show(results: dict[str, Any]) -> None:
    """Print one table per group of metrics with the meaning of each column on stdout, and warnings on stderr."""
    from lepmerge.comparison.columns import groups_of

    names = list(results["models"])
    for group in groups_of(results):
        rows = [[name, *(c.shown(c.values[place]) for c in group.columns)] for place, name in enumerate(names)]
        click.echo(f"{group.title} ({group.note})")
        click.echo(table(rows, header=["model", *(c.label for c in group.columns)]))
        for name, meaning in group.meanings.items():
            click.echo(f"  {name}: {meaning}")
        click.echo()
    for warning in results["warnings"]:
        click.echo(f"{click.style('warning:', fg='yellow')} {warning}", err=True)


def _cards(loaded: list[Any], reference: str | None) -> dict[str, Path]:
    from lepmerge.comparison.card import check_cards

    return check_cards(loaded, reference)


def _write(results: dict[str, Any], plot: Path | None, html: Path | None, cards: dict[str, Path]) -> None:
    if plot is not None:
        from lepmerge.comparison.columns import charts_of
        from lepmerge.output.plots import panels

        charts, names = charts_of(results), list(results["models"])
        panels(
            plot,
            {title: [(value, None) for value in column.values] for title, column in charts.items()},
            names,
            strong=len(names),
            per_row=3,
            digits={title: column.digits for title, column in charts.items()},
            marked=results["reference"],
        )
    if html is not None:
        from lepmerge.comparison.report import write_report

        write_report(html, results)
    if cards:
        from lepmerge.comparison.card import write_card

        for name, path in cards.items():
            write_card(path, results, name)


def _named(argument: str, default: str) -> tuple[str, str]:
    """Split NAME=PATH into (name, path). Without a name, or if a file of that whole name exists, use `default`."""
    name, equals, path = argument.partition("=")
    return (name, path) if equals and name and not Path(argument).exists() else (default, argument)


@contextmanager
def _together(group: Any, quiet: bool) -> Iterator[Any]:
    """Yield the progress callback of a comparison that a process group computes. Only the main process shows it."""
    with (
        group.noticing_losses("comparison", "Run the same command again"),
        _progress(quiet or group.rank > 0) as progress,
    ):
        yield progress
    group.close()


@contextmanager
def _progress(quiet: bool) -> Iterator[Any]:
    """Yield a progress callback. On a terminal it draws a bar on stderr, otherwise it writes one line per model."""
    from tqdm import tqdm

    begun: set[str] = set()

    with tqdm(
        disable=True if quiet else None, leave=False, file=sys.stderr, bar_format="{desc} {n}/{total} [{elapsed}]"
    ) as bar:
        shown = ""

        def progress(what: str, num_done: int, total: int | None = None, /) -> None:
            nonlocal shown
            if what != shown:
                shown, bar.n, bar.total = what, 0, total
                bar.set_description_str(what[:48], refresh=False)
            bar.n += num_done
            bar.refresh()
            model = what.partition(":")[0]
            if not quiet and not sys.stderr.isatty() and model not in begun:
                begun.add(model)
                click.echo(f"measuring {model}", err=True)

        yield progress
