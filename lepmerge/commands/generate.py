"""lepmerge generate: let a model answer prompts, and save the chats as training data for `lepmerge train`."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lepmerge.commands.console import LogClock, human_seconds, print_json, show_note

if TYPE_CHECKING:
    from lepmerge.generation.run import Progressed

existing_file = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("model")
@click.argument("prompts", nargs=-1, type=existing_file)
@click.option("-o", "--output", required=True, type=click.Path(file_okay=False, path_type=Path),
              help="New folder for chats.jsonl and report.json.")  # fmt: skip
@click.option("--text", "texts", multiple=True, help="Also make prompts from this plain text. Repeatable.")
@click.option("--form", "forms", multiple=True, type=click.Choice(["continue", "repeat", "question"]),
              help="Form of the prompts that are made from --text. Repeatable.  [default: all forms, in "
                   "turn]")  # fmt: skip
@click.option("--text-prompts", default=1000, show_default=True, type=click.IntRange(min=1),
              help="Maximum number of prompts that are made from --text.")  # fmt: skip
@click.option(
    "--column", default="text", show_default=True, help="Field of .jsonl and .parquet rows that holds the text."
)
@click.option("--longest", default=1500, show_default=True, type=click.IntRange(min=100),
              help="Maximum length of a passage of text, in characters.")  # fmt: skip
@click.option(
    "--wordings",
    type=existing_file,
    help="JSON file with the wordings of the requests.  [default: built-in Russian and English wordings]",
)
@click.option("--max-new-tokens", default=512, show_default=True, type=click.IntRange(min=1),
              help="Maximum length of an answer, in tokens. Longer answers are dropped.")  # fmt: skip
@click.option("--temperature", default=0.0, show_default=True, type=click.FloatRange(min=0),
              help="Sampling temperature. 0 always takes the most probable token (greedy).")  # fmt: skip
@click.option("--top-p", default=1.0, show_default=True, type=click.FloatRange(min=0, min_open=True, max=1),
              help="Sample only from the most probable tokens whose probabilities add up to this.")  # fmt: skip
@click.option("--candidates", default=1, show_default=True, type=click.IntRange(min=1),
              help="Answers per prompt, of which the best is kept: the one with the highest score of the grader, then "
                   "with the highest probability.")  # fmt: skip
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Seed of all random choices.")
@click.option("--batch-size", default=16, show_default=True, type=click.IntRange(min=1),
              help="Number of prompts that a model on this machine answers at once.")  # fmt: skip
@click.option(
    "--device", default="auto", show_default=True, help="Device to compute on: auto, cpu, cuda, cuda:N or mps."
)
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]),
              help="Data type of the weights.  [default: float32 on the CPU, otherwise as stored]")  # fmt: skip
@click.option(
    "--server", metavar="URL", help="Ask this OpenAI-compatible server instead; MODEL is then the model's name there."
)
@click.option("--concurrency", default=8, show_default=True, type=click.IntRange(min=1),
              help="Number of requests that a server gets at once.")  # fmt: skip
@click.option("--api-key-env", metavar="NAME", help="Environment variable that holds the key of --server.")
@click.option("--script", "scripts", multiple=True, metavar="NAME",
              help="Drop an answer if less than half of its letters are in this script, e.g. Cyrillic. Repeatable: "
                   "the scripts count together.")  # fmt: skip
@click.option("--keep", "kept", multiple=True, type=click.Choice(["cut", "repetitive"]),
              help="Do not drop answers that reach --max-new-tokens (cut), or that repeat themselves "
                   "(repetitive).")  # fmt: skip
@click.option(
    "--grader", metavar="MODEL", help="Model that scores each answer from 1 to 5.  [default: answers are not scored]"
)
@click.option("--grader-server", metavar="URL", help="Ask this server for the grader instead of loading it.")
@click.option(
    "--grader-api-key-env", metavar="NAME", help="Environment variable that holds the key of --grader-server."
)
@click.option("--grader-prompt", type=existing_file,
              help="Text file with the grader's prompt; it must hold {prompt} and {answer}.  [default: "
                   "built-in]")  # fmt: skip
@click.option("--min-score", default=4.0, show_default=True, type=click.FloatRange(min=1, max=5),
              help="Drop answers that the grader scores lower.")  # fmt: skip
@click.option("--copies", multiple=True, help="Also add requests to repeat passages of this text exactly. Repeatable.")
@click.option("--copy-fraction", default=0.4, show_default=True,
              type=click.FloatRange(min=0, min_open=True, max=1, max_open=True),
              help="Fraction of all records that --copies makes up.")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace finished chats in the output folder.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON on stdout instead of a summary.")
@click.option("-q", "--quiet", is_flag=True, help="Print only errors.")
def generate(output: Path, overwrite: bool, as_json: bool, quiet: bool, **options: Any) -> None:
    """Let a model answer prompts, to make training data.

    PROMPTS are .jsonl files with `messages` or `prompt` in each line. An interrupted run resumes. With `accelerate
    launch`, several processes share out the prompts.

    \b
    Example:
      lepmerge generate models/instruct prompts.jsonl --script Cyrillic -o out/answers
      lepmerge generate my-model prompts.jsonl --server http://127.0.0.1:8000 -o out/answers
      accelerate launch -m lepmerge generate models/instruct prompts.jsonl -o out/answers
    """
    from transformers.utils.logging import disable_progress_bar

    from lepmerge.generation.job import Options, make_job
    from lepmerge.generation.run import generate as run

    disable_progress_bar()
    job = make_job(Options(output=output, **options))
    with _progress(quiet or as_json or not job.is_main) as on_event:
        report = run(job, overwrite=overwrite, on_event=on_event)
    if report is None:  # not the main process, which prints the report
        return
    if as_json:
        print_json(report)
    elif not quiet:
        _show(report)
        click.echo(str(output))


@contextmanager
def _progress(quiet: bool) -> Iterator[Any]:
    """Yield the run's progress callback. It draws a bar with tokens per second on a terminal, or else logs lines."""
    from tqdm import tqdm

    with tqdm(unit="prompt", disable=quiet or not sys.stderr.isatty(), leave=False, file=sys.stderr) as bar:
        clock = LogClock()
        pace: dict[str, _Pace] = {}

        def on_event(event: "Progressed") -> None:
            now = pace.setdefault(event.what, _Pace(event.done))
            now.num_tokens += event.num_tokens
            bar.set_description_str(event.what, refresh=False)
            bar.set_postfix_str(now.rate, refresh=False)
            bar.total, bar.n = event.total, event.done
            bar.refresh()
            if bar.disable and not quiet and event.num_tokens and clock.is_due():
                left = human_seconds(now.seconds_left(event.done, event.total))
                clock.write(f"{event.what}: {event.done} of {event.total}, {now.rate}, {left} left")

        yield on_event


class _Pace:
    """Measures the speed of a stage in this run. first: number of prompts that an earlier run had finished."""

    def __init__(self, first: int) -> None:
        self._began, self._first, self.num_tokens = time.monotonic(), first, 0

    @property
    def _seconds(self) -> float:
        return max(time.monotonic() - self._began, 1e-9)

    @property
    def rate(self) -> str:
        return f"{self.num_tokens / self._seconds:.0f} tokens/s"

    def seconds_left(self, done: int, total: int) -> float:
        return (total - done) * self._seconds / max(1, done - self._first)


def _show(report: dict[str, Any]) -> None:
    """Print the counts on stdout, and what is missing on stderr."""
    from lepmerge.generation.copies import num_copies

    dropped = ", ".join(f"{reason} {count}" for reason, count in report["dropped"].items())
    dropped = f" (dropped: {dropped})" if dropped else ""
    click.echo(f"{report['prompts']} prompts, {report['kept']} answers kept{dropped}")
    if report["settings"]["copies"]:
        click.echo(f"{report['copies']} copies added, {report['records']} records in all")
        wanted = num_copies(report["kept"], report["settings"]["copy_fraction"])
        if report["copies"] < wanted:
            found = report["copies"]
            show_note(f"the text of --copies has passages for {found} of {wanted} copies: give more text")
    if too_long := report["examples"].get("prompt too long"):
        number = report["dropped"]["prompt too long"]
        are, were = ("s are", "were") if number > 1 else (" is", "was")
        show_note(
            f"{number} prompt{are} longer than the context of the model and {were} left out, the first: "
            f"{too_long['prompt']}"
        )
