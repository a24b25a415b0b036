"""Writes cli.md from the commands.

python docs/make_cli.py
"""

import inspect
from collections.abc import Iterator
from pathlib import Path

import click

from lepmerge.commands.main import main as lepmerge

PAGE = Path(__file__).parent / "cli.md"
HEAD = """# Command line

Exit codes: 0 done, 1 a problem with a model, a file or the disk, 2 a problem with the recipe or the command line, 130
interrupted by Ctrl-C, 143 a training that SIGTERM stopped.

[Shell completion and logs](install.md#shell-completion). With `--json`, commands print [one object](json.md).
"""


def page() -> str:
    """Return the page."""
    return HEAD + "".join(
        sections(lepmerge, click.Context(lepmerge, info_name="lepmerge", **lepmerge.context_settings))
    )


def sections(command: click.Command, context: click.Context) -> Iterator[str]:
    """Yield the sections of a command and its subcommands, in the order of `--help`."""
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from sections(found, click.Context(found, info_name=name, parent=context))
    else:
        usage = " ".join(command.collect_usage_pieces(context))
        yield f"\n## `{context.command_path}`\n\n    {context.command_path} {usage}\n\n{described(command)}\n"
        records = [
            record for parameter in command.get_params(context) if (record := parameter.get_help_record(context))
        ]
        yield "| option | meaning |\n|---|---|\n"
        for names, text in records:
            yield f"| `{escaped(names)}` | {escaped(text)} |\n"


def described(command: click.Command) -> str:
    """Return the help text; what click keeps as it is written becomes a code block."""
    parts = []
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        if paragraph.startswith("\b\n"):
            first, *lines = paragraph.removeprefix("\b\n").split("\n")
            parts.append("\n".join([first, "", *(f"    {line.strip()}" for line in lines)]))
        else:
            parts.append(paragraph)
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|").replace("<", "&lt;").replace("] [", r"] \[")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
