"""The lepmerge command: its subcommands in the order of work."""

from importlib import import_module

import click

from lepmerge.commands.console import CommandGroup
from lepmerge.commands.logs import with_log_options
from lepmerge.version import __version__

SUMMARIES = {
    "init": "Write a project folder for a model.",
    "chain": "Run the commands of a project in order.",
    "tokenizer": "Build a vocabulary that fits a language, or measure one.",
    "train": "Train the embeddings of a model on text or chats.",
    "import": "Print the recipe that a mergekit configuration means.",
    "plan": "Show what a recipe would read, compute and write.",
    "run": "Execute a recipe and write its output model.",
    "generate": "Let a model answer prompts, to make training data.",
    "compare": "Measure what an adaptation gained and what it cost.",
    "darumeru": "Print the Darumeru benchmark's table from results of lm_eval.",
    "inspect": "Show the tensors, vocabulary and settings of a model.",
    "diff": "Compare two models tensor by tensor.",
    "extract": "Save the difference between two models as a PEFT adapter.",
    "convert": "Convert a GGUF file to a model folder.",
}
"""Command → first sentence of its help. The command's module is imported when it is used."""
FUNCTIONS = {"import": ("import_", "import_"), "plan": ("plan", "plan_")}
"""Command → its module and function, where they are not called like the command."""


class Commands(CommandGroup):
    """The group of all commands. Its help imports none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(SUMMARIES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in SUMMARIES and cmd_name not in self.commands:
            module, function = FUNCTIONS.get(cmd_name, (cmd_name, cmd_name))
            command = getattr(import_module(f"lepmerge.commands.{module}"), function)
            self.add_command(with_log_options(command))
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(SUMMARIES.items()))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
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
