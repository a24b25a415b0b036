"""The lepmerge command: its subcommands in the order of work."""

import click

from lepmerge.commands.chain import chain
from lepmerge.commands.compare import compare
from lepmerge.commands.console import CommandGroup
from lepmerge.commands.convert import convert
from lepmerge.commands.darumeru import darumeru
from lepmerge.commands.diff import diff
from lepmerge.commands.extract import extract
from lepmerge.commands.generate import generate
from lepmerge.commands.import_ import import_
from lepmerge.commands.init import init
from lepmerge.commands.inspect import inspect
from lepmerge.commands.logs import with_log_options
from lepmerge.commands.plan import plan_
from lepmerge.commands.run import run
from lepmerge.commands.tokenizer import tokenizer
from lepmerge.commands.train import train
from lepmerge.version import __version__


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="lepmerge")
def main() -> None:
    """Adapt an instruct LLM to another language: vocabulary swap, Learned Embedding Propagation, embedding arithmetic.

    \b
    Your own model in two commands:
      lepmerge init MODEL my-project   write a project: all files of the steps below
      lepmerge chain my-project        run its steps, and resume after an interruption
    \b
    The steps one by one:
      lepmerge tokenizer extend ...    1. build a vocabulary that fits the language
      lepmerge train train.yaml        2. train the embeddings of the base model
      lepmerge run recipe.yaml         3. propagate them into the instruct model
      lepmerge train calibrate.yaml    4. learn from the original instruct model
      lepmerge compare ...             5. measure what was gained and what it cost
    """


for command in (
    init,
    chain,
    tokenizer,
    train,
    import_,
    plan_,
    run,
    generate,
    compare,
    darumeru,
    inspect,
    diff,
    extract,
    convert,
):
    main.add_command(with_log_options(command))
