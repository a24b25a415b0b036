"""lepmerge tokenizer: build vocabularies that fit a language, and measure them."""

import json
from pathlib import Path
from typing import Any

import click

from lepmerge.commands.console import progress_bar, table

_corpus = click.argument("corpus", nargs=-1, required=True)
_column = click.option(
    "--column",
    default="text",
    show_default=True,
    help="Field of .jsonl and .parquet rows that holds the text, e.g. text, or doc.text for a nested one.",
)
_split = click.option(
    "--split",
    help="In folders and Hub data sets, read only files whose name or folder begins with this split, "
    "e.g. train.  [default: all files]",
)
_limit = click.option("--limit", metavar="SIZE", help="Read at most this much text, e.g. 1GB.  [default: all of it]")
_output = click.option(
    "--output", "-o", required=True, type=click.Path(file_okay=False), help="New folder for the tokenizer."
)
_quiet = click.option("-q", "--quiet", is_flag=True, help="Print only errors.")


@click.group()
def tokenizer() -> None:
    """Build a vocabulary that fits a language, or measure one.

    CORPUS is text: .txt, .jsonl or .parquet files (also .gz, .zst), folders, globs or Hub data sets. A row of .jsonl
    or .parquet is one document with one text. A .txt file is one document; its paragraphs, separated by blank lines,
    are its texts.
    """


@tokenizer.command()
@click.argument("model")
@_corpus
@click.option("--add", "num_tokens", type=click.IntRange(min=1), help="Number of tokens to add.")
@click.option("--vocab-size", type=click.IntRange(min=1), help="Size of the new vocabulary, instead of --add.")
@click.option(
    "--script",
    "scripts",
    multiple=True,
    help="Add only tokens of this Unicode script, e.g. Cyrillic. Repeatable.  [default: any script]",
)
@click.option("--layout", type=click.Choice(["after", "before"]), default="after", show_default=True,
              help="Where the new ids go: after the last used id, or before the added tokens at the end.")  # fmt: skip
@click.option(
    "--from",
    "from_",
    metavar="TOKENIZER",
    help="Add only tokens that this tokenizer has too; the best of them are chosen.",
)
@_column
@_split
@_limit
@_output
@_quiet
def extend(
    model: str,
    corpus: tuple[str, ...],
    num_tokens: int | None,
    vocab_size: int | None,
    scripts: tuple[str, ...],
    layout: str,
    from_: str | None,
    column: str,
    split: str | None,
    limit: str | None,
    output: str,
    quiet: bool,
) -> None:
    """Add tokens to a model's vocabulary; old ids stay the same.

    The BPE training of MODEL's tokenizer is continued on CORPUS.

    \b
    Example:
      lepmerge tokenizer extend models/base corpus/ --add 8000 --script Cyrillic -o tokenizers/ru
    """
    if (num_tokens is None) == (vocab_size is None):
        raise click.UsageError("give either --add or --vocab-size")
    with _progress(corpus, split, quiet) as progress:
        from lepmerge.tokenization.build import extend_tokenizer

        report = extend_tokenizer(
            model,
            corpus,
            Path(output),
            num_tokens=num_tokens,
            vocab_size=vocab_size,
            scripts=scripts,
            only_from=from_,
            layout=layout,
            column=column,
            split=split,
            limit=_bytes(limit),
            progress=progress,
        )
    if not quiet:
        _show(output, report)


@tokenizer.command()
@click.argument("model")
@_corpus
@click.option("--keep", required=True, metavar="SHARE", help="Fraction of the old tokens to keep, e.g. 50%.")
@click.option("--vocab-size", required=True, type=click.IntRange(min=1), help="Size of the new vocabulary.")
@click.option(
    "--script",
    "scripts",
    multiple=True,
    help="Add only tokens of this Unicode script, e.g. Cyrillic. Repeatable.  [default: any script]",
)
@_column
@_split
@_limit
@_output
@_quiet
def optimize(
    model: str,
    corpus: tuple[str, ...],
    keep: str,
    vocab_size: int,
    scripts: tuple[str, ...],
    column: str,
    split: str | None,
    limit: str | None,
    output: str,
    quiet: bool,
) -> None:
    """Drop the rarest tokens of a vocabulary, then add new ones.

    MODEL's tokenizer keeps the tokens that CORPUS uses most, and is then extended on CORPUS.

    \b
    Example:
      lepmerge tokenizer optimize models/base corpus/ --keep 50% --vocab-size 114504 -o tokenizers/ru
    """
    with _progress(corpus, split, quiet) as progress:
        from lepmerge.tokenization.build import optimize_tokenizer

        report = optimize_tokenizer(
            model, corpus, Path(output), keep=_share(keep), vocab_size=vocab_size, scripts=scripts, column=column,
            split=split, limit=_bytes(limit), progress=progress,
        )  # fmt: skip
    if not quiet:
        _show(output, report)


@tokenizer.command()
@click.argument("corpus", nargs=-1, required=True)
@click.option("--type", "kind", type=click.Choice(["bpe", "unigram"]), required=True, help="Algorithm.")
@click.option("--vocab-size", required=True, type=click.IntRange(min=1), help="Size of the vocabulary.")
@click.option(
    "--like", required=True, metavar="MODEL", help="Model to take the special tokens and the chat template from."
)
@_column
@_split
@_limit
@_output
@_quiet
def train(
    corpus: tuple[str, ...],
    kind: str,
    vocab_size: int,
    like: str,
    column: str,
    split: str | None,
    limit: str | None,
    output: str,
    quiet: bool,
) -> None:
    """Train a new tokenizer on CORPUS.

    \b
    Example:
      lepmerge tokenizer train corpus/ --type bpe --vocab-size 32000 --like models/base -o tokenizers/ru-bpe
    """
    with _progress(corpus, split, quiet) as progress:
        from lepmerge.tokenization.build import train_tokenizer

        report = train_tokenizer(
            kind, corpus, Path(output), like=like, vocab_size=vocab_size, column=column, split=split,
            limit=_bytes(limit), progress=progress,
        )  # fmt: skip
    if not quiet:
        _show(output, report)


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
    from lepmerge.tokenization.build import report_on

    found = report_on(tokenizers, files, column=column, limit=_bytes(limit))
    if plot is not None:
        from lepmerge.output.plots import bars

        values = {
            text: {name: figures["symbols_per_token"] for name, figures in by_name.items()}
            for text, by_name in found.items()
        }
        bars(Path(plot), values, label="symbols per token")
    if as_json:
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    for text, by_name in found.items():
        click.echo(f"{text}{_skipped(next(iter(by_name.values()))['corpus']['skipped'])}")
        other = ("corpus", "differing")
        keys = list(dict.fromkeys(key for figures in by_name.values() for key in figures if key not in other))
        rows = [[name, *(_shown(key, figures.get(key)) for key in keys)] for name, figures in by_name.items()]
        click.echo(table(rows, header=["tokenizer", *(key.replace("_", " ") for key in keys)]))
        for name, figures in by_name.items():
            if "differing" in figures:
                found = figures["differing"]
                example = f", e.g. {found['examples'][0]!r}" if found["examples"] else ""
                click.echo(f"{name}: {found['texts']} of {found['of']} texts fall into other tokens{example}")


def _shown(figure: str, value: Any) -> Any:
    from lepmerge.tokenization.report import SHARES

    return f"{value:.1%}" if figure in SHARES and value is not None else value


def _progress(corpus: tuple[str, ...], split: str | None, quiet: bool) -> Any:
    """Return the progress bar of a corpus. Look up the files first: a missing one is reported before slow imports."""
    from lepmerge.corpus import find_files

    return progress_bar(sum(path.stat().st_size for path in find_files(corpus, split=split)), quiet=quiet)


def _share(text: str) -> float:
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        raise click.BadParameter("expected a share such as 50% or 0.5", param_hint="--keep")
    return share


def _bytes(limit: str | None) -> int | None:
    from lepmerge.config.schema import num_bytes

    try:
        return None if limit is None else num_bytes(limit)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--limit") from error


def _skipped(reasons: dict[str, int]) -> str:
    return f"; skipped: {', '.join(f'{count:,} {reason}' for reason, count in reasons.items())}" if reasons else ""


def _show(output: str, report: dict[str, Any]) -> None:
    gates, symbols, corpus = report["gates"], report["symbols_per_token"], report["corpus"]
    click.echo(f"corpus: {corpus['documents']:,} documents, {corpus['texts']:,} texts{_skipped(corpus['skipped'])}")
    click.echo(f"{report['old_size']} tokens → {report['size']}, {gates['new_tokens']} of them new")
    click.echo(f"symbols per token {symbols['old']:.2f} → {symbols['new']:.2f} on a sample of the corpus")
    sampled, drawn = gates["round_trip"]["sampled"], gates["round_trip"]["random"]
    click.echo(
        f"come back exactly: {sampled['exact']} of {sampled['texts']} sampled texts, {drawn['exact']} of "
        f"{drawn['texts']} random strings; new tokens that are never reached: {gates['unreachable']}"
    )
    click.echo(output)
