"""The report of a run: counts by reason, examples, scores.

It has no timings and no paths, so that a repeated run gives the same bytes.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lepmerge.chats import Chat
from lepmerge.generation.filters import REASONS
from lepmerge.generation.ranking import Judged, best, furthest
from lepmerge.output.provenance import versions
from lepmerge.version import __version__

EXAMPLE_CHARACTERS = 200


def report_of(
    prompts: Sequence[Chat], judged: Sequence[Sequence[Judged]], *, num_records: int, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the report. The records are the kept answers and the copies.

    A prompt is kept with its best candidate. Otherwise it counts for one reason: that of the candidate that passed the
    most checks. `examples` shows the first dropped prompt of each reason.
    """
    dropped: Counter[str] = Counter()
    scores: Counter[str] = Counter()
    examples: dict[str, dict[str, str]] = {}
    for prompt, candidates in zip(prompts, judged, strict=True):
        scores.update(f"{candidate.score:g}" for candidate in candidates if candidate.score is not None)
        if best(candidates) is None:
            reason, text = furthest(candidates)
            dropped[reason] += 1
            examples.setdefault(reason, {"prompt": Path(prompt.where).name, "answer": text[:EXAMPLE_CHARACTERS]})
    kept = len(prompts) - dropped.total()
    return {
        "lepmerge": __version__,
        "versions": versions(),
        "prompts": len(prompts),
        "kept": kept,
        "dropped": {reason: dropped[reason] for reason in REASONS if dropped[reason]},
        "copies": num_records - kept,
        "records": num_records,
        "tokens": sum(candidate.answer.num_tokens for candidates in judged for candidate in candidates),
        **({"scores": dict(sorted(scores.items(), key=lambda item: float(item[0])))} if scores else {}),
        "examples": {reason: examples[reason] for reason in REASONS if reason in examples},
        "settings": dict(settings),
    }
