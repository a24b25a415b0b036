"""lepmerge tokenizer: build vocabularies that fit a language, and measure them."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from lepmerge.commands.console import print_json, progress_bar, table
from lepmerge.commands.options import json_option, options, quiet_option

_column = click.option(
    "--column",
    default="text",
    show_default=True,
    help="Field of .jsonl and .parquet rows that holds the text, e.g. text, or doc.text for a nested one.",
)
_limit = click.option("--limit", metavar="SIZE", help="Read at most this much text, e.g. 1GB.  [default: all of it]")
_scripts = click.option(
    "--script",
    "scripts",
    multiple=True,
    help="Add only tokens of this Unicode script, e.g. Cyrillic. Repeatable.  [default: any script]",
)
_corpus_and_output = options(
    click.argument("sources", metavar="CORPUS...", nargs=-1, required=True),
    _column,
    click.option(
        "--split",
        help="In folders and Hub data sets, read only files whose name or folder begins with this split, "
        "e.g. train.  [default: all files]",
    ),
    _limit,
    click.option("--output", "-o", required=True, type=click.Path(file_okay=False), help="Folder for the tokenizer."),
    click.option("--overwrite", is_flag=True, help="Replace a tokenizer in the output folder."),
    json_option,
    quiet_option,
)


def _builds(command: Callable[..., Any]) -> Any:
    """Make a click command of a function that returns the job of its options: build it, and print its report."""

    @_corpus_and_output
    @functools.wraps(command)
    def run(
        sources: tuple[str, ...],
        column: str,
        split: str | None,
        limit: str | None,
        output: str,
        overwrite: bool,
        as_json: bool,
        quiet: bool,
        **settings: Any,
    ) -> None:
        from lepmerge.corpus import Corpus

        corpus = Corpus(sources, column=column, split=split, limit=_bytes(limit))
        size = sum(path.stat().st_size for path in corpus.files())  # a missing file is reported before slow imports
        with progress_bar(size, quiet=quiet or as_json) as progress:
            from lepmerge.tokenization.build import build_tokenizer

            job = command(corpus=corpus, **settings)
            report = build_tokenizer(job, Path(output), overwrite=overwrite, progress=progress)
        if as_json:
            print_json({"output": output, **report})
        elif not quiet:
            _show(output, report)

    return run


@click.group()
def tokenizer() -> None:
    """Build a vocabulary that fits a language, or measure one.

    CORPUS is text: .txt, .jsonl or .parquet files (also .gz, .zst), folders, globs or Hub data sets. A row of .jsonl
    or .parquet is one document with one text. A .txt file is one document; its paragraphs, separated by blank lines,
    are its texts.
    """


@tokenizer.command()
@click.argument("model")
@click.option("--add", "num_tokens", type=click.IntRange(min=1), help="Number of tokens to add.")
@click.option("--vocab-size", type=click.IntRange(min=1), help="Size of the new vocabulary, instead of --add.")
@_scripts
@click.option("--layout", type=click.Choice(["after", "before"]), default="after", show_default=True,
              help="Where the new ids go: after the last used id, or before the added tokens at the end.")  # fmt: skip
@click.option(
    "--from",
    "only_from",
    metavar="TOKENIZER",
    help="Add only tokens that this tokenizer has too; the best of them are chosen.",
)
@_builds
def extend(**settings: Any) -> Any:
    """Add tokens to a model's vocabulary; old ids stay the same.

    The BPE training of MODEL's tokenizer is continued on CORPUS.

    \b
    Example:
      lepmerge tokenizer extend models/base corpus/ --add 8000 --script Cyrillic -o tokenizers/ru
    """
    from lepmerge.tokenization.build import Extend

    if (settings["num_tokens"] is None) == (settings["vocab_size"] is None):
        raise click.UsageError("give either --add or --vocab-size")
    return Extend(**settings)


@tokenizer.command()
@click.argument("model")
@click.option("--keep", required=True, metavar="FRACTION", help="Fraction of the old tokens to keep, e.g. 50%.")
@click.option("--vocab-size", required=True, type=click.IntRange(min=1), help="Size of the new vocabulary.")
@_scripts
@_builds
def optimize(keep: str, **settings: Any) -> Any:
    """Drop the rarest tokens of a vocabulary, then add new ones.

    MODEL's tokenizer keeps the tokens that CORPUS uses most, and is then extended on CORPUS.

    \b
    Example:
      lepmerge tokenizer optimize models/base corpus/ --keep 50% --vocab-size 114504 -o tokenizers/ru
    """
    from lepmerge.tokenization.build import Optimize

    return Optimize(keep=_fraction(keep), **settings)


@tokenizer.command()
@click.option("--type", "kind", type=click.Choice(["bpe", "unigram"]), required=True, help="Algorithm.")
@click.option("--vocab-size", required=True, type=click.IntRange(min=1), help="Size of the vocabulary.")
@click.option(
    "--like",
    "model",
    required=True,
    metavar="MODEL",
    help="Model to take the special tokens and the chat template from.",
)
@_builds
def train(**settings: Any) -> Any:
    """Train a new tokenizer on CORPUS.

    \b
    Example:
      lepmerge tokenizer train corpus/ --type bpe --vocab-size 32000 --like models/base -o tokenizers/ru-bpe
    """
    from lepmerge.tokenization.build import Train

    return Train(**settings)


@tokenizer.command()
@click.argument("tokenizers", nargs=-1, required=True, metavar="TOKENIZER...")
@click.option("--text", "files", multiple=True, required=True, help="Text to measure on. Repeatable.")
@click.option(
    "--plot", type=click.Path(dir_okay=False), help="Also write a bar chart of the symbols per token to this PNG file."
)
@_column
@_limit
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout instead of a table.")
def report(
    tokenizers: tuple[str, ...],
    files: tuple[str, ...],
    plot: str | None,
    column: str,
    limit: str | None,
    as_json: bool,
) -> None:
    """Measure tokenizers on texts and compare them.

    The other TOKENIZERs are compared against the first one.

    \b
    Example:
      lepmerge tokenizer report models/base tokenizers/ru --text ru.txt --text en.txt --plot report.png
    """
    from lepmerge.comparison.report import check_writable
    from lepmerge.corpus import find_files

    find_files(files)
    if plot is not None:
        check_writable(Path(plot))
    from lepmerge.tokenization.report import compare_tokenizers

    found = compare_tokenizers(tokenizers, files, column=column, limit=_bytes(limit))
    if plot is not None:
        from lepmerge.output.plots import bars

        values = {
            text: {name: metrics["symbols_per_token"] for name, metrics in by_name.items()}
            for text, by_name in found.items()
        }
        bars(Path(plot), values, label="symbols per token")
    if as_json:
        print_json({"texts": found})
        return
    for text, by_name in found.items():
        click.echo(f"{text}{_skipped(next(iter(by_name.values()))['corpus']['skipped'])}")
        other = ("corpus", "differing")
        keys = list(dict.fromkeys(key for metrics in by_name.values() for key in metrics if key not in other))
        rows = [[name, *(_shown(key, metrics.get(key)) for key in keys)] for name, metrics in by_name.items()]
        click.echo(table(rows, header=["tokenizer", *(key.replace("_", " ") for key in keys)]))
        for name, metrics in by_name.items():
            if differing := metrics.get("differing"):
                example = f", e.g. {differing['examples'][0]!r}" if differing["examples"] else ""
                click.echo(f"{name}: tokenizes {differing['texts']} of {differing['of']} texts differently{example}")


def _shown(metric: str, value: Any) -> Any:
    from lepmerge.tokenization.report import PERCENTAGES

    return f"{value:.1%}" if metric in PERCENTAGES and value is not None else value


def _fraction(text: str) -> float:
    try:
        fraction = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        fraction = -1.0
    if not 0 < fraction <= 1:
        raise click.BadParameter("expected a fraction such as 50% or 0.5", param_hint="--keep")
    return fraction


def _bytes(limit: str | None) -> int | None:
    from lepmerge.config.schema import num_bytes

    try:
        return None if limit is None else num_bytes(limit)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--limit") from error


def _skipped(reasons: dict[str, int]) -> str:
    return f"; skipped: {', '.join(f'{count:,} {reason}' for reason, count in reasons.items())}" if reasons else ""


def _show(output: str, report: dict[str, Any]) -> None:
    checks, symbols, corpus = report["checks"], report["symbols_per_token"], report["corpus"]
    click.echo(f"corpus: {corpus['documents']:,} documents, {corpus['texts']:,} texts{_skipped(corpus['skipped'])}")
    click.echo(f"{report['old_size']} tokens → {report['size']}, {checks['new_tokens']} of them new")
    click.echo(f"symbols per token {symbols['old']:.2f} → {symbols['new']:.2f} on a sample of the corpus")
    sampled, drawn = checks["round_trip"]["sampled"], checks["round_trip"]["random"]
    click.echo(
        f"decoded exactly: {sampled['exact']} of {sampled['texts']} sampled texts, {drawn['exact']} of "
        f"{drawn['texts']} random strings; unreachable new tokens: {checks['unreachable']}"
    )
    click.echo(output)
