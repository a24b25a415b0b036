"""Choose which candidate of a prompt becomes the answer."""

from collections.abc import Sequence
from dataclasses import dataclass

from lepmerge.generation.engine import Answer
from lepmerge.generation.filters import REASONS, TOO_LONG


@dataclass(frozen=True)
class Judged:
    """A candidate with the grader's score (if any) and the reason why it is dropped (if it is)."""

    answer: Answer
    score: float | None
    reason: str | None


def best(candidates: Sequence[Judged]) -> Judged | None:
    """Return the best candidate that is not dropped, or None if all are.

    Candidates are ranked by the grader's score, then by log-probability per token; of equal ones the first wins.
    """
    kept = [candidate for candidate in candidates if candidate.reason is None]
    return max(kept, key=lambda c: (c.score or 0.0, c.answer.log_probability or 0.0), default=None)


def furthest(candidates: Sequence[Judged]) -> tuple[str, str]:
    """Return reason and text of the dropped candidate that passed the most checks, the earliest of several."""
    if not candidates:
        return TOO_LONG, ""
    found = max(candidates, key=lambda candidate: REASONS.index(candidate.reason or TOO_LONG))
    assert found.reason is not None, "a candidate is kept"
    return found.reason, found.answer.text
