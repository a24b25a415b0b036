"""Cut held-out texts into the pieces on which bits per byte are measured, in trainings and in comparisons alike."""

from collections.abc import Iterable, Sequence

from lepmerge.corpus import cut

PIECE_BYTES = 1024
"""Largest piece, in bytes."""
WRAPPED = 120
"""A text with a line of more characters is not wrapped: each of its lines is a paragraph."""


def paragraphs_of(texts: Iterable[str], *, max_bytes: int | None = None) -> list[str]:
    """Return the paragraphs in the first `max_bytes` bytes of the texts, by default in all of them."""
    found: list[str] = []
    left = max_bytes if max_bytes is not None else 1 << 62
    for text in texts:
        for paragraph in _lines(text):
            if left <= 0:
                return found
            found.append(next(cut(paragraph, left), ""))
            left -= len(found[-1].encode())
    return found


def pieces_of(paragraphs: Iterable[str], piece_bytes: int) -> list[str]:
    """Return the paragraphs in pieces of at most `piece_bytes` bytes, without white space at their ends.

    Pieces are cut at spaces. Each is predicted alone, after the model's prefix (<s>).
    """
    found = (piece.strip() for paragraph in paragraphs for piece in cut(paragraph, piece_bytes))
    return [piece for piece in found if piece]


def piece_size(room: Sequence[int], most: int = PIECE_BYTES) -> int:
    """Return the size of pieces that every model can predict even if each byte is a token.

    So all vocabularies predict the same bytes from the same context. room: for each model, the tokens that its context
    leaves after the prefix.
    """
    return min(most, *room)


def _lines(text: str) -> list[str]:
    lines = text.splitlines()
    return lines if max(map(len, lines), default=0) > WRAPPED else [text]
