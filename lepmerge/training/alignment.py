"""Two tokenizations of one text meet at the bytes where a token ends in both.

Example: "Ура, да" as `Ур|а,| да` and `У|р|а|,| да` meet after "Ур", after "Ура," and at the end.

Legend: N tokens, P pairs of tokens that end at the same byte.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from lepmerge.vocabulary.vocabulary import Vocabulary


class Speller:
    """The bytes that each token of a vocabulary stands for, added tokens included."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        added = vocabulary.added.values()
        self.data: Mapping[int, bytes] = {**vocabulary.bytes_of, **{token.id: token.data for token in added}}
        self.strips = {token.id: (bool(token.entry.get("lstrip")), bool(token.entry.get("rstrip"))) for token in added}
        """Id of an added token → whether it takes the white space before and after it along."""

    def ends(self, text: bytes, ids: Sequence[int]) -> np.ndarray:
        """Return for each token the byte of `text` at which it ends, (N,) int64.

        A space that the tokenizer puts at the start of a text, or after an added token, has no bytes in the text.
        Where the tokens stop spelling the text (a normalizer changed it, <unk>), this and all later tokens have -1.
        """
        found_N = np.full(len(ids), -1, dtype=np.int64)
        place = first = 0
        while first < len(ids):
            stop = first
            while stop < len(ids) and ids[stop] not in self.strips:
                stop += 1
            spelled = [self.data.get(id, b"\xff") for id in ids[first:stop]]  # no UTF-8 text has 0xFF
            ends, is_whole = _segment_ends(text, place, spelled)
            found_N[first : first + len(ends)] = ends
            if not is_whole:
                break
            place = ends[-1] if ends else place
            if stop < len(ids):
                place = self._after_added(text, place, ids[stop])
                if place < 0:
                    break
                found_N[stop] = place
            first = stop + 1
        return found_N

    def _after_added(self, text: bytes, place: int, id: int) -> int:
        """Return where an added token that is expected at `place` ends, -1 when it does not stand there."""
        takes_before, takes_after = self.strips[id]
        if takes_before:
            place = _after_space(text, place)
        if not text.startswith(self.data[id], place):
            return -1
        place += len(self.data[id])
        return _after_space(text, place) if takes_after else place


def _segment_ends(text: bytes, place: int, spelled: Sequence[bytes]) -> tuple[list[int], bool]:
    """Return where the tokens between two added ones end, as far as they spell the text, and whether all do."""
    whole = b"".join(spelled)
    common, start = _common_length(text[place:], whole), place
    if common < len(whole) and whole.startswith(b" "):
        without_space = 1 + _common_length(text[place:], whole[1:])
        if without_space > common:
            common, start = without_space, place - 1
    ends = start + np.cumsum([len(data) for data in spelled], dtype=np.int64)
    known = ends[ends <= start + common]
    return np.maximum(known, place).tolist(), len(known) == len(spelled)


def _common_length(first: bytes, second: bytes) -> int:
    """Return how many bytes two byte strings share at their beginnings."""
    if first.startswith(second):
        return len(second)
    length = min(len(first), len(second))
    differs = np.frombuffer(first, np.uint8, length) != np.frombuffer(second, np.uint8, length)
    return int(differs.argmax()) if differs.any() else length


def _after_space(text: bytes, place: int) -> int:
    while text[place : place + 1].isspace():
        place += 1
    return place


def shared_boundaries(first_N: np.ndarray, second_N: np.ndarray) -> np.ndarray:
    """Return (P, 2): the tokens of two tokenizations that end at the same byte, in order.

    first_N, second_N: where each token ends, or -1. Of several tokens that end at one byte, the last one counts: it
    has seen everything up to there.
    """
    (first_end, first_place), (second_end, second_place) = (_last_at_each_end(part) for part in (first_N, second_N))
    _, first, second = np.intersect1d(first_end, second_end, assume_unique=True, return_indices=True)
    return np.stack([first_place[first], second_place[second]], axis=1)


def _last_at_each_end(end_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    place = np.flatnonzero((end_N >= 0) & (end_N != np.append(end_N[1:], -2)))
    return end_N[place], place


def paired_pieces(
    pair_P2: np.ndarray, ends_line_P: np.ndarray, lengths: tuple[int, int], rooms: tuple[int, int]
) -> Iterator[tuple[slice, slice, slice]]:
    """Yield pieces of two tokenizations of one text that hold the same bytes: tokens of both, and their pairs.

    A piece has at most `rooms` tokens. It ends where a line does, else at another shared boundary. What follows a
    stretch without a shared boundary that is longer than a piece may be is left out.
    """
    stop_P2 = pair_P2 + 1
    line_P = np.flatnonzero(ends_line_P)
    start, pair = (0, 0), 0
    while pair < len(pair_P2):
        if all(length - begin <= room for length, begin, room in zip(lengths, start, rooms, strict=True)):
            yield slice(start[0], lengths[0]), slice(start[1], lengths[1]), slice(pair, len(pair_P2))
            return
        most = min(int(np.searchsorted(stop_P2[:, side], start[side] + rooms[side], side="right")) for side in (0, 1))
        if most <= pair:
            return
        lines = line_P[(line_P >= pair) & (line_P < most)]
        last = int(lines[-1]) if len(lines) else most - 1
        stop = int(stop_P2[last, 0]), int(stop_P2[last, 1])
        yield slice(start[0], stop[0]), slice(start[1], stop[1]), slice(pair, last + 1)
        start, pair = stop, last + 1
