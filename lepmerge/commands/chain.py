"""lepmerge chain: run the commands of a project in order."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lepmerge.commands.console import human_seconds, print_json
from lepmerge.commands.logs import ONLY_PARSED, log_words
from lepmerge.commands.options import json_option, quiet_option

if TYPE_CHECKING:
    from lepmerge.projects.chain import Chain, State, Step

NOT_IN_A_CHAIN = ("init", "chain")


@click.command()
@click.argument("project", type=click.Path(path_type=Path), default=Path())
@click.option("--dry-run", is_flag=True, help="Print the commands and which of them are complete, and stop.")
@json_option
@quiet_option
@click.pass_context
def chain(context: click.Context, project: Path, dry_run: bool, as_json: bool, quiet: bool) -> None:
    """Run the commands of a project in order.

    PROJECT is a folder with a project.yaml, such as `lepmerge init` writes.  [default: the current folder]
    Complete commands are skipped. To resume an interrupted chain, run it again.

    \b
    Example:
      lepmerge chain llama-ru
    """
    import subprocess

    from lepmerge.projects.chain import open_chain, run_chain

    found = open_chain(project, lambda words: _fault(context, words))
    if dry_run:
        _show_steps(found, as_json)
        return

    def before(number: int, step: "Step", state: "State") -> None:
        if not quiet and not as_json:
            what = "complete already: " if state == "complete" else ""
            click.echo(f"[{number + 1}/{len(found.steps)}] {what}lepmerge {step.text}", err=True)

    try:
        finished = run_chain(
            found, more=log_words(context), before=before, output=subprocess.DEVNULL if as_json or quiet else None
        )
    except KeyboardInterrupt:
        click.echo(f"stopped: run `lepmerge chain {shlex.quote(str(project))}` again to continue", err=True)
        sys.exit(130)
    if as_json:
        steps = [
            {"command": each.step.text, "state": each.state, "seconds": round(each.seconds, 1)} for each in finished
        ]
        print_json({"folder": str(found.folder), "steps": steps})
    elif not quiet:
        seconds = sum(each.seconds for each in finished)
        click.echo(f"all {len(finished)} steps are complete ({human_seconds(seconds)})", err=True)


def _show_steps(found: "Chain", as_json: bool) -> None:
    states = [_state(found, step) for step in found.steps]
    if as_json:
        steps = [{"command": step.text, "state": state} for step, state in zip(found.steps, states, strict=True)]
        print_json({"folder": str(found.folder), "steps": steps})
        return
    click.echo(f"in {found.folder}:")
    for number, (step, state) in enumerate(zip(found.steps, states, strict=True), start=1):
        click.echo(f"{number}  {state:9} lepmerge {step.text}")


def _state(found: "Chain", step: "Step") -> str:
    """Return the state of a step. A command that checks its own output is at most `ran before`."""
    if found.is_complete(step):
        return "complete"
    return "ran before" if step.text in found.ended() else "to run"


def _fault(context: click.Context, words: Sequence[str]) -> str | None:
    """Return what is wrong with the words of a command, or None. Files may be missing: earlier commands write them."""
    parent = context.find_root()
    command: click.Command | None = parent.command
    names = list(words)
    while isinstance(command, click.Group):
        name, group = names.pop(0) if names else "", command
        command = group.get_command(parent, name)
        if command is None or name in NOT_IN_A_CHAIN:
            known = [each for each in group.list_commands(parent) if each not in NOT_IN_A_CHAIN]
            return f"unknown command {name!r}; the commands are {', '.join(known)}"
    assert command is not None
    try:
        context.meta[ONLY_PARSED] = True
        command.make_context(command.name, names, parent=parent)
    except click.BadParameter as error:
        return None if "does not exist" in error.message else error.format_message()
    except click.UsageError as error:
        return error.format_message()
    finally:
        context.meta[ONLY_PARSED] = False
    return None
