"""Find tokens that look broken: the model needs many more bits for them, or after them, than the reference does.

If a row of the output table belongs to another token, its own token becomes improbable where it occurs. If a row of the
input table does, whatever follows its token becomes improbable. In a text both effects overlap, so a fit separates
them. Let x_k be the bits that the model needs for the k-th token of a text, minus the bits that the reference needs for
the same bytes. Then

    x_k = written[token k] + read[token k-1] + noise

is fitted over all texts by alternating means (shrunk by one occurrence). `written` is the excess of a token itself
(output table), `read` is the excess that it causes in the next token (input table), both in bits per occurrence.

The thresholds below were chosen from measurements on the quickstart's models, with 158 kB of Russian and with a sixth
of it, against references with the old and with the new vocabulary:

- Sound models (swap, overlap, conversion, delta, adapted base): the largest excess of any token, minus its standard
  error, is below 4 bits; in some comparisons of different vocabularies one token exceeds it. The median is below 1 bit.
- 200 of 1024 new rows permuted: 22 (with the sixth) to 106 tokens exceed 4 bits in the table that was broken, and at
  most 4 in the other.
- New rows that are untrained means of old rows: the median is 1.7 bits (read) and 2.8 bits (written).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lepmerge.comparison.loading import LanguageModel
from lepmerge.comparison.texts import Predicted, bits_up_to
from lepmerge.vocabulary.vocabulary import Vocabulary

EXCESS_BITS = 4.0
"""A token is suspect if its excess, minus one standard error and minus the model's median, is larger than this."""
LEAST_SUSPECTS = 5
LEAST_OCCURRENCES = 3
LEAST_JUDGED = 20
"""No token is called suspect unless at least this many tokens occur often enough to be judged."""
UNTRAINED_BITS = 1.5
"""If the median excess of the new tokens is larger than this, the new tokens as a whole count as untrained."""
NAMED = 8
ROUNDS = 4


@dataclass(frozen=True)
class Excess:
    """The excess of each token in bits per occurrence, its standard error, the number of occurrences (each (V,))."""

    bits_V: np.ndarray
    error_V: np.ndarray
    count_V: np.ndarray

    @property
    def judged_V(self) -> np.ndarray:
        return self.count_V >= LEAST_OCCURRENCES

    def median(self, among_V: np.ndarray) -> float:
        """Return the median excess of the judged tokens in a mask, 0 if there are none."""
        chosen = self.bits_V[self.judged_V & among_V]
        return float(np.median(chosen)) if len(chosen) else 0.0

    def suspects(self) -> np.ndarray:
        """Return the ids of the suspect tokens, worst first."""
        median = max(0.0, self.median(np.ones_like(self.judged_V)))
        beyond_V = self.bits_V - self.error_V - median
        found = np.flatnonzero(self.judged_V & (beyond_V > EXCESS_BITS))
        return found[np.argsort(-beyond_V[found], kind="stable")]


def new_tokens(vocabulary: Vocabulary, reference: Vocabulary) -> set[int]:
    """Return the ids of ordinary tokens whose bytes are not a token of the reference's vocabulary."""
    if vocabulary is reference:
        return set()
    return {id for id, data in vocabulary.text_bytes_of.items() if reference.id_of_bytes(data) is None}


def excess_of(
    predicted: Mapping[str, Predicted], reference: Mapping[str, Predicted], num_rows: int
) -> dict[str, Excess]:
    """Return `written` and `read` → excess, given the same texts predicted by a model and by the reference."""
    tokens, before, extra = [], [], []
    for name, own in predicted.items():
        spread = bits_up_to(reference[name])
        for ids, bits, ends, reference_bits in zip(own.ids, own.bits, own.ends, spread, strict=True):
            starts = np.concatenate([[0], ends[:-1]])
            tokens.append(np.array(ids, dtype=np.int64))
            before.append(np.array((num_rows, *ids[:-1]), dtype=np.int64)[: len(ids)])  # num_rows stands for the prefix
            extra.append(bits - (reference_bits[ends] - reference_bits[starts]))
    token_N, before_N, extra_N = (np.concatenate(part) for part in (tokens, before, extra))
    size = num_rows + 1
    written, read = np.zeros(size), np.zeros(size)
    count_of = {"written": np.bincount(token_N, minlength=size), "read": np.bincount(before_N, minlength=size)}
    for _ in range(ROUNDS):
        written = np.bincount(token_N, extra_N - read[before_N], size) / (count_of["written"] + 1)
        read = np.bincount(before_N, extra_N - written[token_N], size) / (count_of["read"] + 1)
    square_N = (extra_N - written[token_N] - read[before_N]) ** 2
    found = {}
    for name, id_N, bits in (("written", token_N, written), ("read", before_N, read)):
        count = count_of[name]
        error = np.sqrt(np.bincount(id_N, square_N, size) / np.maximum(count - 1, 1) / np.maximum(count, 1))
        found[name] = Excess(bits[:num_rows], error[:num_rows], count[:num_rows])
    return found


def check_tokens(
    model: LanguageModel,
    predicted: Mapping[str, Predicted],
    expected: Mapping[str, Predicted],
    reference: str,
    vocabulary: Vocabulary,
) -> dict[str, Any]:
    """Return the metrics of both tables, the suspect tokens, and `warnings` in plain words.

    predicted, expected: the same texts as predicted by the model and by the reference. reference, vocabulary: name and
    vocabulary of the reference.
    """
    num_rows = model.checkpoint.num_rows
    new = new_tokens(model.vocabulary, vocabulary)
    new_V = np.zeros(num_rows, dtype=bool)
    new_V[[id for id in new if id < num_rows]] = True
    found: dict[str, Any] = {"new_tokens": len(new), "warnings": []}
    for side, excess in excess_of(predicted, expected, num_rows).items():
        judged = int(excess.judged_V.sum())
        suspects = excess.suspects() if judged >= LEAST_JUDGED else np.empty(0, dtype=np.int64)
        median_new = excess.median(new_V)
        found[side] = {
            "judged": judged,
            "judged_new": int((excess.judged_V & new_V).sum()),
            "median_excess_bits": excess.median(np.ones_like(new_V)),
            "median_excess_bits_new": median_new,
            "suspects": [
                {
                    "id": int(id),
                    "text": token_text(model.vocabulary, int(id)),
                    "new": bool(new_V[id]),
                    "excess_bits": float(excess.bits_V[id]),
                    "standard_error": float(excess.error_V[id]),
                    "occurrences": int(excess.count_V[id]),
                }
                for id in suspects
            ],
        }
        found["warnings"] += _warnings(model.name, reference, side, found[side])
    return found


def _warnings(name: str, reference: str, side: str, metrics: Mapping[str, Any]) -> list[str]:
    suspects = metrics["suspects"]
    table = {"written": "output", "read": "input"}[side]
    what = {"written": "are", "read": "make what follows them"}[side]
    if metrics["judged_new"] >= LEAST_JUDGED and metrics["median_excess_bits_new"] > UNTRAINED_BITS:
        return [
            f"{name}: the new tokens {what} {metrics['median_excess_bits_new']:.1f} bits less probable than under "
            f"{reference} (median): their {table} rows are not trained, or not for this model"
        ]
    if len(suspects) < LEAST_SUSPECTS:
        return []
    num_new = sum(suspect["new"] for suspect in suspects)
    named = ", ".join(f"{suspect['text']!r} (+{suspect['excess_bits']:.0f})" for suspect in suspects[:NAMED])
    return [
        f"{name}: {len(suspects)} tokens ({num_new} of them new) of {metrics['judged']} look broken in the {table} "
        f"table: they {what} over {EXCESS_BITS:.0f} bits less probable than under {reference}: {named}"
        + (", …" if len(suspects) > NAMED else "")
    ]


def token_text(vocabulary: Vocabulary, id: int) -> str:
    """Return a token as text. Bytes that are not valid UTF-8 alone are shown as \\x escapes."""
    return vocabulary.text_bytes_of.get(id, b"").decode(errors="backslashreplace")
