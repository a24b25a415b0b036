"""Decide which answers are dropped, and for which reason."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import regex

from lepmerge.generation.engine import Answer
from lepmerge.generation.passages import letters_of

EMPTY, CUT, REPETITIVE, SCRIPT = "empty", "cut at the limit", "repetitive", "wrong script"
TOO_LONG, NO_SCORE, LOW_SCORE = "prompt too long", "no score", "low score"
REASONS = (TOO_LONG, EMPTY, CUT, REPETITIVE, SCRIPT, NO_SCORE, LOW_SCORE)
"""All reasons, in the order in which they are checked."""
OPTIONAL = {"cut": CUT, "repetitive": REPETITIVE}
"""Name in --keep → reason that can be switched off."""
WINDOW = 20
"""Repetition is counted in stretches of this many characters. Ordinary text rarely repeats such a stretch."""
MOST_REPEATED = 0.3
LEAST_IN_SCRIPT = 0.5


@dataclass(frozen=True)
class Filters:
    """The settings of the filters.

    scripts: at least half of an answer's letters must belong to these; empty allows any script. kept: reasons of
    OPTIONAL that are switched off. min_score: answers with a lower score of the grader are dropped.
    """

    scripts: Sequence[str] = ()
    kept: Sequence[str] = ()
    min_score: float = 4.0

    def reason(self, answer: Answer) -> str | None:
        """Return why an answer is dropped, None for a good one."""
        if not answer.text.strip():
            return EMPTY
        if answer.is_cut and CUT not in self.kept:
            return CUT
        if repeated_fraction(answer.text) > MOST_REPEATED and REPETITIVE not in self.kept:
            return REPETITIVE
        if self.scripts and script_fraction(answer.text, self.scripts) < LEAST_IN_SCRIPT:
            return SCRIPT
        return None

    def reason_of_score(self, score: float | None) -> str | None:
        """Return why an answer with this grade is dropped. score: None where the grader named none."""
        if score is None:
            return NO_SCORE
        return LOW_SCORE if score < self.min_score else None


def repeated_fraction(text: str) -> float:
    """Return the fraction of the stretches of WINDOW characters that occurred before in the text.

    It is 0 for text without repetition and near 1 for a loop. Since it counts characters, it also works for languages
    without spaces. Example: "ab" * 20 has 21 stretches, of which 2 are distinct, so the result is 19 / 21.
    """
    text = " ".join(text.split())
    stretches = [text[start : start + WINDOW] for start in range(len(text) - WINDOW + 1)]
    return 1 - len(set(stretches)) / len(stretches) if stretches else 0.0


def script_fraction(text: str, scripts: Sequence[str]) -> float:
    """Return the fraction of the letters that belong to the Unicode scripts, 1 if there are no letters.

    Blocks of code between ``` are ignored.
    """
    text = re.sub(r"```.*?(```|$)", "", text, flags=re.DOTALL)
    letters = regex.findall(r"\p{L}", text)
    inside = sum(len(letters_of(script, text)) for script in scripts)
    return inside / len(letters) if letters else 1.0
