"""Run `lepmerge generate`: answer, grade, write records. Every stage resumes where it was killed.

chats.jsonl    the records: {"messages": [...]}, in the order of the prompts, then the copies
report.json    counts, settings, versions; lepmerge_run.json has the fingerprint and the seconds
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lepmerge.chats import Chat, Message
from lepmerge.errors import GenerationError, OutputError
from lepmerge.generation.copies import num_copies
from lepmerge.generation.engine import Answer, Engine
from lepmerge.generation.filters import Filters
from lepmerge.generation.grader import grading_request, score_of
from lepmerge.generation.journal import Journal
from lepmerge.generation.ranking import Judged, best
from lepmerge.generation.report import report_of
from lepmerge.json_text import to_json
from lepmerge.models.configs import read_json
from lepmerge.output.run import Run, digest

if TYPE_CHECKING:
    from lepmerge.training.group import Group  # imports torch, which a server's answers do not need

CHATS, REPORT = "chats.jsonl", "report.json"
STAGED = "lepmerge generate"
"""The fingerprint of the staging folder, the same for all settings. Each journal in it has a name that depends on what
decides its answers. So changed settings do not discard finished answers before the run is complete."""


@dataclass(frozen=True)
class Progressed:
    """Progress: `done` of `total` prompts are answered (or graded), with `num_tokens` since the last event."""

    what: str
    done: int
    total: int
    num_tokens: int


OnEvent = Callable[[Progressed], None]


@dataclass(frozen=True)
class Grading:
    """A grader and its prompt, which contains {prompt} and {answer}."""

    engine: Engine
    template: str


@dataclass(frozen=True)
class Job:
    """What a run has to generate.

    copies: records to add, as many as make up `copy_fraction` of all records. inputs: files and folders that the output
    must not touch. described: names and settings for the report. group: the processes that share out the prompts, None
    if this is the only one; each process has its own job with the same prompts and settings.
    """

    target: Path
    prompts: Sequence[Chat]
    engine: Engine
    filters: Filters = Filters()
    grading: Grading | None = None
    copies: Sequence[tuple[Message, ...]] = ()
    copy_fraction: float = 0.4
    inputs: Sequence[Path] = ()
    described: Mapping[str, Any] = field(default_factory=dict)
    group: "Group | None" = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes the output."""
        return self.group is None or self.group.rank == 0

    @property
    def fingerprint(self) -> str:
        return digest(
            [
                _journal_name("", self.engine, self.prompts),
                asdict(self.filters),
                [self.grading.engine.identity, self.grading.template] if self.grading else None,
                list(self.copies),
                self.copy_fraction,
            ]
        )


def no_event(event: Progressed) -> None:
    """No-op callback."""


def generate(job: Job, *, overwrite: bool = False, on_event: OnEvent = no_event) -> dict[str, Any] | None:
    """Write chats.jsonl and report.json into the target folder and return the report.

    An interrupted run resumes; a complete one is not repeated. If the job has a process group, all its processes call
    this function. The main process writes, the others return None.

    Raises:
        GenerationError: the model or the server failed. Finished answers are kept.
        OutputError: the target holds something else, or cannot be written.
        ProcessLost: another process has ended. Finished answers are kept.
    """
    if job.group is None:
        return _written(job, overwrite, on_event)
    with job.group.noticing_losses("run", "Finished answers are kept, and the same command continues from there"):
        if job.is_main:
            report = _written(job, overwrite, on_event)
        else:
            report = None
            if not _from_main(job, None):
                _judged(job, None, on_event)
    job.group.close()
    return report


def _from_main(job: Job, value: Any) -> Any:
    return value if job.group is None else job.group.from_main(value)


def _written(job: Job, overwrite: bool, on_event: OnEvent) -> dict[str, Any]:
    """Write the output in the main process and return the report. Tell the others first whether it is complete."""
    run = Run(
        target=job.target,
        fingerprint=job.fingerprint,
        inputs=tuple(job.inputs),
        key="--output",
        overwrite=overwrite,
        marker=REPORT,
        staged=STAGED,
    )
    if run.begin():
        _from_main(job, True)
        return read_json(job.target / REPORT)
    run.check({})
    if run.staging.fingerprint() not in (None, STAGED):
        raise OutputError(f"{run.staging.folder} holds an unfinished run of another command: choose another --output")
    with run.opened({}) as staging:
        _from_main(job, False)
        judged = _judged(job, staging.folder, on_event)
        records = _records(job, judged)
        report = report_of(job.prompts, judged, num_records=len(records), settings=job.described)
        staging.write_bytes(CHATS, "".join(_line(record) for record in records).encode())
        staging.write_bytes(REPORT, to_json(report))
    return report


def _judged(job: Job, folder: Path | None, on_event: OnEvent) -> list[list[Judged]]:
    """Return the judged candidates of each prompt. folder: of the journals, None if another process writes them."""
    answers = answered(job, job.engine, job.prompts, folder, "answers", on_event)
    job.engine.release()
    if answers and not any(answers):
        raise GenerationError(f"none of the {len(answers)} prompts fits into the context of the model")
    found = [[Judged(answer, None, job.filters.reason(answer)) for answer in candidates] for candidates in answers]
    if job.grading is None:
        return found
    return _graded(job, job.grading, found, folder, on_event)


def _graded(
    job: Job, grading: Grading, found: list[list[Judged]], folder: Path | None, on_event: OnEvent
) -> list[list[Judged]]:
    """Return the candidates again, with scores for those that passed the other filters."""
    asked = [
        (place, number)
        for place, candidates in enumerate(found)
        for number, candidate in enumerate(candidates)
        if candidate.reason is None
    ]
    requests = [
        grading_request(grading.template, job.prompts[place], found[place][number].answer.text)
        for place, number in asked
    ]
    replies = answered(job, grading.engine, requests, folder, "scores", on_event)
    grading.engine.release()
    for (place, number), reply in zip(asked, replies, strict=True):
        score = score_of(reply[0].text) if reply else None
        answer = found[place][number].answer
        found[place][number] = Judged(answer, score, job.filters.reason_of_score(score))
    return found


def answered(
    job: Job, engine: Engine, prompts: Sequence[Chat], folder: Path | None, what: str, on_event: OnEvent
) -> list[Sequence[Answer]]:
    """Return the candidates of each prompt. Finished prompts are taken from the main process's journal in the folder.

    Raises:
        GenerationError: the engine failed. The message says how many answers are kept.
    """
    journal = Journal(folder and folder / _journal_name(what, engine, prompts))
    if job.group is not None:
        found = job.group.from_main(dict(journal))
        journal = journal if job.is_main else Journal(None, found)
    on_event(Progressed(what, len(journal), len(prompts), 0))
    try:
        for answers in engine.answers(prompts, journal):
            journal.append(answers)
            num_tokens = sum(answer.num_tokens for candidates in answers.values() for answer in candidates)
            on_event(Progressed(what, len(journal), len(prompts), num_tokens))
    except GenerationError as error:
        raise GenerationError(
            f"{error}; {len(journal)} of {len(prompts)} {what} are kept, the same command continues from there"
        ) from error
    assert len(journal) == len(prompts), "an engine left prompts out"
    return [journal[place] for place in range(len(prompts))]


def _journal_name(what: str, engine: Engine, prompts: Sequence[Chat]) -> str:
    decided = [engine.identity, asdict(engine.sampling), [prompt.messages for prompt in prompts]]
    return f"{what}-{digest(decided)[:16]}.jsonl"


def _records(job: Job, judged: Sequence[Sequence[Judged]]) -> list[Sequence[Message]]:
    """Return the chats with their best answers in the order of the prompts, then the copies."""
    found: list[Sequence[Message]] = [
        (*prompt.messages, {"role": "assistant", "content": chosen.answer.text})
        for prompt, candidates in zip(job.prompts, judged, strict=True)
        if (chosen := best(candidates)) is not None
    ]
    return [*found, *job.copies[: num_copies(len(found), job.copy_fraction)]]


def _line(messages: Sequence[Message]) -> str:
    return json.dumps({"messages": [dict(message) for message in messages]}, ensure_ascii=False) + "\n"
