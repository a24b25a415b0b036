"""lepmerge tokenizer: vocabularies that fit a language."""

from pathlib import Path
from typing import Any

import click

from lepmerge.console import progress_bar

_corpus = click.argument("corpus", nargs=-1, required=True)
_column = click.option("--column", default="text", show_default=True, help="Field of .jsonl and .parquet rows.")
_limit = click.option("--limit", metavar="SIZE", help="Read at most so much text, such as 1GB.")
_output = click.option("--output", "-o", required=True, type=click.Path(file_okay=False), help="The new folder.")
_quiet = click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")


@click.group()
def tokenizer() -> None:
    """Build a vocabulary that fits a language: extend an old one."""


@tokenizer.command()
@click.argument("model")
@_corpus
@click.option("--add", "num_tokens", type=click.IntRange(min=1), help="Number of new tokens.")
@click.option("--vocab-size", type=click.IntRange(min=1), help="Number of tokens in the end, instead of --add.")
@click.option("--script", "scripts", multiple=True, help="Only tokens of this Unicode script, e.g. Cyrillic.")
@click.option("--from", "from_", metavar="TOKENIZER", help="Only tokens that this tokenizer has: the best of them.")
@_column
@_limit
@_output
@_quiet
def extend(
    model: str,
    corpus: tuple[str, ...],
    num_tokens: int | None,
    vocab_size: int | None,
    scripts: tuple[str, ...],
    from_: str | None,
    column: str,
    limit: str | None,
    output: str,
    quiet: bool,
) -> None:
    """Continue the BPE of MODEL's tokenizer on CORPUS; every old id keeps its meaning.

    \b
    Example:
      lepmerge tokenizer extend models/base corpus/ --add 8000 --script Cyrillic -o tokenizers/ru
    """
    from lepmerge.tokenization.build import extend_tokenizer
    from lepmerge.tokenization.corpus import find_files

    if (num_tokens is None) == (vocab_size is None):
        raise click.UsageError("give either --add or --vocab-size")
    total = sum(path.stat().st_size for path in find_files(corpus))
    with progress_bar(total, quiet=quiet) as progress:
        report = extend_tokenizer(
            model,
            corpus,
            Path(output),
            num_tokens=num_tokens,
            vocab_size=vocab_size,
            scripts=scripts,
            only_from=from_,
            column=column,
            limit=_bytes(limit),
            progress=progress,
        )
    if not quiet:
        _show(output, report)


def _bytes(limit: str | None) -> int | None:
    from lepmerge.recipe import num_bytes

    try:
        return None if limit is None else num_bytes(limit)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--limit") from error


def _show(output: str, report: dict[str, Any]) -> None:
    gates = report["gates"]
    click.echo(
        f"{report['old_size']} tokens + {gates['new_tokens']} = {report['size']}; symbols per token "
        f"{report['symbols_per_token']['old']:.2f} → {report['symbols_per_token']['new']:.2f} on a sample of the corpus"
    )
    exact, count = gates["round_trip"]["exact"], gates["round_trip"]["texts"]
    click.echo(f"all new tokens reachable; {exact} of {count} texts come back exactly, none worse than before")
    click.echo(output)
