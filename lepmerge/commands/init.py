"""lepmerge init: write a project folder for a model."""

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from lepmerge.commands.console import print_json
from lepmerge.commands.options import json_option, quiet_option
from lepmerge.progress import human_bytes


@click.command()
@click.argument("model")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--language", default="ru", show_default=True, metavar="CODE",
              help="ISO 639-1 code of the language, e.g. uk, de or ka.")  # fmt: skip
@click.option("--base", metavar="MODEL",
              help="Model that MODEL was fine-tuned from.  [default: the one that its model card or its name "
                   "says]")  # fmt: skip
@click.option("--no-base", is_flag=True, help="Adapt MODEL alone: no training of the base, no propagation.")
@click.option("--memory", metavar="SIZE",
              help="Memory of the device that will train, e.g. 16GB.  [default: that of this machine]")  # fmt: skip
@click.option("--tokens", metavar="COUNT",
              help="Stop each training after this many tokens, e.g. 10M.  [default: train once through all the "
                   "text]")  # fmt: skip
@click.option("--text", metavar="PATH", help="Text for training.  [default: FOLDER/text/train]")
@click.option("--held-out", metavar="PATH", help="Text for measuring.  [default: FOLDER/text/held_out]")
@json_option
@quiet_option
def init(
    model: str,
    folder: Path,
    language: str,
    base: str | None,
    no_base: bool,
    memory: str | None,
    tokens: str | None,
    text: str | None,
    held_out: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write a project folder for a model.

    MODEL is an instruct model: a folder or a Hub id. Only its config and tokenizer are read. FOLDER gets the files of
    all steps, with values that fit the model and the memory, and a README.md. `lepmerge chain FOLDER` runs the steps.

    \b
    Example:
      lepmerge init meta-llama/Llama-3.2-1B-Instruct llama-ru --language ru --memory 16GB
    """
    if base is not None and no_base:
        raise click.UsageError("give either --base or --no-base")
    wanted_memory, wanted_tokens = _memory(memory), _tokens(tokens)
    from transformers.utils.logging import disable_progress_bar

    from lepmerge.projects.init import Wishes, project_for

    disable_progress_bar()
    wishes = Wishes(
        model=model, language=language, base=base, has_base=not no_base, memory=wanted_memory, tokens=wanted_tokens,
        text=text, held_out=held_out,
    )  # fmt: skip
    project = project_for(folder, wishes)
    project.write()
    if as_json:
        choice = project.choice
        shown = {"output": str(folder), "commands": project.commands, "values": asdict(choice.values),
                 "base": choice.base and choice.base.reference.text, "memory": choice.needed}  # fmt: skip
        print_json(shown)
    elif not quiet:
        _show(folder, project)


def _show(folder: Path, project: Any) -> None:
    choice = project.choice
    values = choice.values
    base = choice.base.reference.text if choice.base else "none: the model is adapted without propagation"
    click.echo(f"base      {base}")
    click.echo(f"values    {values.new_tokens:,} new tokens, learning rate {values.learning_rate:g}, "
               f"{values.batch_size} blocks of {values.block_size} tokens per step")  # fmt: skip
    click.echo(f"tokens    {_tokens_line(choice)}")
    click.echo(f"memory    about {human_bytes(choice.needed)}")
    if missing := choice.texts_to_give:
        click.echo("\nFirst put text into:")
        for path, what in missing.items():
            click.echo(f"  {path}   {what}")
    click.echo(f"\n{'Then run' if missing else 'Run'} all steps:\n  lepmerge chain {shlex.quote(str(folder))}")
    click.echo(f"\nThese are the steps. You can also run them one by one in {folder}:")
    for command in project.commands:
        click.echo(f"  lepmerge {command}")


def _tokens_line(choice: Any) -> str:
    """Return how much the trainings read, and the remedy if that is much for a CPU."""
    values = choice.values
    calibration = f"{values.calibration_tokens:,} for calibration"
    training = f"{values.max_tokens:,}" if values.max_tokens else "all the text once"
    line = f"{training} for training, {calibration}" if choice.base else calibration
    return line if choice.wishes.tokens else f"{line} (hours on a CPU; --tokens 50K for a first try)"


def _memory(text: str | None) -> int | None:
    from lepmerge.config.schema import num_bytes

    try:
        return None if text is None else num_bytes(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--memory") from error


def _tokens(text: str | None) -> int | None:
    from lepmerge.config.schema import count_of

    count = count_of(text)
    if count is None or (isinstance(count, int) and count > 0):
        return count
    if text is not None and text.isdigit() and int(text) > 0:
        return int(text)
    raise click.BadParameter("should be a number of tokens such as 96K or 10M", param_hint="--tokens")
