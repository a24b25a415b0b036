"""-v, -vv and --log-file, which every command has.

-v shows on stderr what a command does, -vv also details and the traceback of an error. The file gets all of that with
times, and what the command shows on stderr. Modules log to `logging.getLogger(__name__)`; commands note what they
show with `shown`.
"""

import logging
import sys
from collections.abc import Iterable
from pathlib import Path

import click

from lepmerge.errors import OutputError
from lepmerge.version import __version__

LOGGER = logging.getLogger("lepmerge")
SHOWN = logging.getLogger("lepmerge.shown")
"""What is on the terminal anyway: only the log file gets it."""
SHOWN.propagate = False
for each in (LOGGER, SHOWN):
    each.addHandler(logging.NullHandler())  # otherwise Python shows errors that no handler takes
WORDS = "lepmerge.log_words"
"""Key in a context's meta for the options as they were given."""

BEGUN = "lepmerge.log_begun"
ONLY_PARSED = "lepmerge.only_parsed"
"""Key in a context's meta that is true while a command line is parsed but not run."""


def with_log_options(command: click.Command) -> click.Command:
    """Add the options to a command, or to all commands of a group."""
    if isinstance(command, click.Group):
        for each in command.commands.values():
            with_log_options(each)
        return command
    command.params += [
        click.Option(
            ["-v", "--verbose"], count=True, expose_value=False, callback=_verbose,
            help="Show on stderr what is done. -vv also shows details, and the traceback of an error.",
        ),
        click.Option(
            ["--log-file"], type=click.Path(dir_okay=False), metavar="FILE", expose_value=False, callback=_log_file,
            help="Append a log with times to this file.",
        ),
    ]  # fmt: skip
    return command


def log_words(context: click.Context) -> list[str]:
    """Return the log options of this command line, to be given to another command."""
    return list(context.meta.get(WORDS, []))


def shown(text: str) -> None:
    """Note in the log file what the command shows."""
    SHOWN.info(text)


def failed(error: BaseException) -> None:
    """Note an error that ends the command. -vv and the log file get its traceback."""
    SHOWN.error("error: %s", error)
    LOGGER.debug("traceback", exc_info=error)


def _verbose(context: click.Context, parameter: click.Parameter, count: int) -> None:
    if count and not context.meta.get(ONLY_PARSED):
        _remember(context, [f"-{'v' * count}"])
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(relativeCreated)6d ms  %(message)s"))
        handler.setLevel(logging.INFO if count == 1 else logging.DEBUG)
        _attach(context, handler, [LOGGER])


def _log_file(context: click.Context, parameter: click.Parameter, path: str | None) -> None:
    if path is None or context.resilient_parsing or context.meta.get(ONLY_PARSED):
        return
    _remember(context, ["--log-file", str(Path(path).absolute())])
    try:
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"--log-file {path} cannot be written: {error.strerror}") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    _attach(context, handler, [LOGGER, SHOWN])


def _attach(context: click.Context, handler: logging.Handler, loggers: Iterable[logging.Logger]) -> None:
    """Let the handler get messages until the command ends."""
    old = [(logger, logger.level) for logger in (LOGGER, SHOWN)]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)

    def detach() -> None:
        for logger in loggers:
            logger.removeHandler(handler)
        for logger, level in old:
            logger.setLevel(level)
        handler.close()

    context.find_root().call_on_close(detach)
    if not context.meta.get(BEGUN):
        context.meta[BEGUN] = True
        LOGGER.info("lepmerge %s, python %s: %s", __version__, sys.version.split()[0], context.command_path)


def _remember(context: click.Context, words: list[str]) -> None:
    context.meta.setdefault(WORDS, []).extend(words)


def show_started(what: str, *, quiet: bool) -> None:
    """Say at once, before slow imports, that a long command has begun."""
    if not quiet:
        shown(what)
        click.echo(what, err=True)
