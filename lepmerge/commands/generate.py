"""lepmerge generate: a model answers prompts; the chats are what `lepmerge train` learns from."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lepmerge.commands.console import LogClock, human_seconds, show_note

if TYPE_CHECKING:
    from lepmerge.generation.run import Progressed

existing_file = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("model")
@click.argument("prompts", nargs=-1, type=existing_file)
@click.option("-o", "--output", required=True, type=click.Path(file_okay=False, path_type=Path),
              help="New folder for chats.jsonl and report.json.")  # fmt: skip
@click.option("--text", "texts", multiple=True, help="Also make prompts from this plain text.")
@click.option("--form", "forms", multiple=True, type=click.Choice(["continue", "repeat", "question"]),
              help="Forms of the prompts that are made from text. Default: all.")  # fmt: skip
@click.option("--text-prompts", default=1000, show_default=True, type=click.IntRange(min=1),
              help="At most this many prompts are made from text.")  # fmt: skip
@click.option("--column", default="text", show_default=True, help="Field of .jsonl and .parquet rows of text.")
@click.option("--longest", default=1500, show_default=True, type=click.IntRange(min=100),
              help="Characters of a passage of text, at most.")  # fmt: skip
@click.option("--wordings", type=existing_file, help="JSON file that words the requests. Default: Russian and English.")
@click.option("--max-new-tokens", default=512, show_default=True, type=click.IntRange(min=1),
              help="Limit of an answer. Longer ones are dropped.")  # fmt: skip
@click.option("--temperature", default=0.0, show_default=True, type=click.FloatRange(min=0),
              help="0 takes the most probable token (greedy).")  # fmt: skip
@click.option("--top-p", default=1.0, show_default=True, type=click.FloatRange(min=0, min_open=True, max=1),
              help="Sample from the most probable tokens that make up this probability.")  # fmt: skip
@click.option("--candidates", default=1, show_default=True, type=click.IntRange(min=1),
              help="Answers per prompt. The best is kept, by score, then by the model's probability.")  # fmt: skip
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Seed of everything random.")
@click.option("--batch-size", default=16, show_default=True, type=click.IntRange(min=1),
              help="Prompts that a model on this machine answers at once.")  # fmt: skip
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]),
              help="Type of the weights. Default: float32 on the CPU, elsewhere as stored.")  # fmt: skip
@click.option("--server", metavar="URL", help="Ask this OpenAI-compatible server; MODEL is the model's name there.")
@click.option("--concurrency", default=8, show_default=True, type=click.IntRange(min=1),
              help="Requests that a server gets at once.")  # fmt: skip
@click.option("--api-key-env", metavar="NAME", help="Environment variable that holds the key of --server.")
@click.option("--script", "scripts", multiple=True, metavar="NAME",
              help="Drop answers with under half of their letters in this script, e.g. Cyrillic.")  # fmt: skip
@click.option("--keep", "kept", multiple=True, type=click.Choice(["cut", "repetitive"]),
              help="Do not drop answers that are cut at the limit, or repetitive.")  # fmt: skip
@click.option("--grader", metavar="MODEL", help="Model that gives each answer a score from 1 to 5.")
@click.option("--grader-server", metavar="URL", help="The grader is on this server.")
@click.option("--grader-api-key-env", metavar="NAME", help="Environment variable with the key of --grader-server.")
@click.option("--grader-prompt", type=existing_file,
              help="File with the grader's prompt, which contains {prompt} and {answer}.")  # fmt: skip
@click.option("--min-score", default=4.0, show_default=True, type=click.FloatRange(min=1, max=5),
              help="Drop answers with a lower score.")  # fmt: skip
@click.option("--copies", multiple=True, help="Add requests to repeat passages of this text exactly.")
@click.option("--copy-share", default=0.4, show_default=True,
              type=click.FloatRange(min=0, min_open=True, max=1, max_open=True),
              help="Fraction of all records that are copies.")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace finished chats at the output.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
def generate(output: Path, overwrite: bool, as_json: bool, quiet: bool, **options: Any) -> None:
    """Let MODEL answer PROMPTS (.jsonl files with `messages` or `prompt`). A run that was stopped continues.

    \b
    Example:
      lepmerge generate models/instruct prompts.jsonl --script Cyrillic -o out/answers
      lepmerge generate my-model prompts.jsonl --server http://127.0.0.1:8000 -o out/answers
    """
    from transformers.utils.logging import disable_progress_bar

    from lepmerge.generation.job import Options, make_job
    from lepmerge.generation.run import generate as run

    disable_progress_bar()
    job = make_job(Options(output=output, **options))
    with _progress(quiet or as_json) as on_event:
        report = run(job, overwrite=overwrite, on_event=on_event)
    if as_json:
        click.echo(json.dumps(report, indent=2, ensure_ascii=False))
    elif not quiet:
        _show(report)
        click.echo(str(output))


@contextmanager
def _progress(quiet: bool) -> Iterator[Any]:
    """Yield the callback of a run: a bar with tokens per second on a terminal, otherwise a line now and then."""
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
    """How fast a stage is since this run began with it. first: what an earlier run had finished."""

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
    """Print the counts on stdout, what is missing on stderr."""
    from lepmerge.generation.copies import num_copies

    dropped = ", ".join(f"{reason} {count}" for reason, count in report["dropped"].items())
    dropped = f" (dropped: {dropped})" if dropped else ""
    click.echo(f"{report['prompts']} prompts, {report['kept']} answers kept{dropped}")
    if report["settings"]["copies"]:
        click.echo(f"{report['copies']} copies added, {report['records']} records in all")
        wanted = num_copies(report["kept"], report["settings"]["copy_share"])
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
