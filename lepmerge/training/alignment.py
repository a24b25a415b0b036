"""Align two tokenizations of the same text at shared boundaries: the bytes at which a token ends in both.

Example: `Ур|а,| да` and `У|р|а|,| да` share the boundaries after "Ур", after "Ура," and at the end.

Legend: N tokens, P pairs of tokens that end at the same byte.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from lepmerge.vocabulary.vocabulary import Vocabulary


class Speller:
    """Maps each token of a vocabulary, added tokens included, to the bytes it stands for."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        added = vocabulary.added.values()
        self.data: Mapping[int, bytes] = {**vocabulary.bytes_of, **{token.id: token.data for token in added}}
        self.strips = {token.id: (bool(token.entry.get("lstrip")), bool(token.entry.get("rstrip"))) for token in added}
        """Id of an added token → whether it also swallows the whitespace (before, after) it."""

    def ends(self, text: bytes, ids: Sequence[int]) -> np.ndarray:
        """Return the byte offset in `text` at which each token ends, (N,) int64.

        A space that the tokenizer inserts at the start of a text or after an added token has no bytes in the text.
        From the first token that does not match the text (a normalizer changed it, or <unk>), the offsets are -1.
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
        """Return where the added token that should start at `place` ends, or -1 if the text differs there."""
        takes_before, takes_after = self.strips[id]
        if takes_before:
            place = _after_space(text, place)
        if not text.startswith(self.data[id], place):
            return -1
        place += len(self.data[id])
        return _after_space(text, place) if takes_after else place


def _segment_ends(text: bytes, place: int, spelled: Sequence[bytes]) -> tuple[list[int], bool]:
    """Return where the tokens between two added tokens end, and whether all of them match the text.

    The list stops before the first token that does not match.
    """
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
    """Return the length of the common prefix of two byte strings."""
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
    """Return the pairs of tokens of two tokenizations that end at the same byte, in order, (P, 2).

    first_N, second_N: the byte offset at which each token ends, or -1. If several tokens of one tokenization end at the
    same byte, the last one is taken: only its position has seen all the bytes up to there.
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
    """Cut two tokenizations of one text into pieces of the same bytes. Yield slices of both token lists and the pairs.

    A piece has at most `rooms` tokens of each tokenization. It ends at the end of a line if possible, otherwise at
    another shared boundary. If no shared boundary is near enough to end a piece, the rest of the text is left out.
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
