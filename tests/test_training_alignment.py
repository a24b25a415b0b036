"""Where two tokenizations of one text meet: the same as a naive reference that goes byte by byte."""

import json
from itertools import pairwise

import numpy as np
import pico
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, normalizers

from lepmerge.training.alignment import Speller, paired_pieces, shared_boundaries
from lepmerge.vocabulary.vocabulary import Vocabulary

SPECIAL = ["<|user|>", "<|assistant|>", "<|end|>"]


def with_chat(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


@pytest.fixture(scope="module")
def tokenizers(english, russian) -> dict[str, Tokenizer]:
    texts = [*pico.RUSSIAN, *pico.ENGLISH]
    return {
        "byte-level": with_chat(english),
        "other byte-level": with_chat(russian),
        "SentencePiece": with_chat(pico.sentencepiece(texts, 500)),
        "Metaspace": with_chat(pico.unigram(texts, 300)),
        "without the chat's tokens": english,
    }


def naive_ends(text: str, tokenizer: Tokenizer) -> list[int | None]:
    """Return where each token ends in the bytes of the text, found by decoding ever longer beginnings of the ids.

    Of each beginning it takes the bytes that its tokens stand for, byte by byte, skipping a space that the text lacks
    at its start and behind a special token. None from the first byte on that differs.
    """
    vocabulary = Vocabulary(json.loads(tokenizer.to_str()))
    data = {**vocabulary.bytes_of, **{token.id: token.content.encode() for token in vocabulary.added.values()}}
    special = {token.id for token in vocabulary.added.values()}
    raw, place, fresh, found = text.encode(), 0, True, []
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    for number, id in enumerate(ids):
        if id in special:
            fresh = True
        rest = b"".join(data[i] for i in ids[number:] if not {i} & special) if not special & {*ids[number:]} else None
        for offset, byte in enumerate(data[id]):
            if place < len(raw) and raw[place] == byte and not _phantom(fresh, offset, byte, raw, place, rest):
                place += 1
            elif not (fresh and offset == 0 and byte == 32):
                return found + [None] * (len(ids) - number)
        found.append(place)
        fresh = id in special
    return found


def _phantom(fresh: bool, offset: int, byte: int, raw: bytes, place: int, rest: bytes | None) -> bool:
    """Tell whether a leading space is the tokenizer's own although the text has one there, too."""
    return fresh and offset == 0 and byte == 32 and rest is not None and len(rest) == len(raw) - place + 1


def naive_pairs(first: list[int | None], second: list[int | None], length: int) -> list[tuple[int, int]]:
    """Return, for every byte of the text, the last tokens of both tokenizations that end there."""
    found = []
    for byte in range(length + 1):
        ends = [[place for place, end in enumerate(part) if end == byte] for part in (first, second)]
        if all(ends):
            found.append((ends[0][-1], ends[1][-1]))
    return found


TEXTS = st.lists(
    st.one_of(
        st.sampled_from(["тест", "proper ", "да, нет", " ", "\n", "ё", "😀", "<|user|>", "<|end|>", "  "]),
        st.text(alphabet="абвгд abc.\n", max_size=12),
    ),
    min_size=1,
    max_size=8,
).map("".join)
WORDS = st.lists(st.sampled_from(["собака", "дом", "space", "lines", "12", "ё😀", "да,"]), min_size=1, max_size=8)


@settings(max_examples=120, deadline=None)
@given(text=TEXTS, names=st.permutations(["byte-level", "other byte-level", "without the chat's tokens"]))
def test_byte_level_tokenizations_meet_where_a_naive_reference_says(tokenizers, text: str, names: list[str]) -> None:
    check(tokenizers, text, names[0], names[1])


@settings(max_examples=120, deadline=None)
@given(
    parts=st.lists(WORDS.map(" ".join), min_size=1, max_size=3),
    role=st.sampled_from(SPECIAL),
    names=st.permutations(["byte-level", "SentencePiece", "Metaspace"]),
)
def test_byte_level_and_sentencepiece_meet_where_a_naive_reference_says(tokenizers, parts, role, names) -> None:
    pairs = check(tokenizers, role.join(["", *parts]), names[0], names[1])
    assert len(pairs)


def check(tokenizers, text: str, *names: str) -> np.ndarray:
    raw = text.encode()
    ends, naive = [], []
    for name in names:
        tokenizer = tokenizers[name]
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        ends.append(Speller(Vocabulary(json.loads(tokenizer.to_str()))).ends(raw, ids))
        naive.append(naive_ends(text, tokenizer))
        assert ends[-1].tolist() == [-1 if end is None else end for end in naive[-1]]
    pairs = shared_boundaries(*ends)
    assert [tuple(pair) for pair in pairs.tolist()] == naive_pairs(*naive, length=len(raw))
    return pairs


def test_a_worked_example() -> None:
    """`Ур|а,| да` and `У|р|а|,| да` meet after Ур, after Ура, and at the end."""
    ends = [np.array([4, 7, 12]), np.array([2, 4, 6, 7, 12])]
    assert shared_boundaries(*ends).tolist() == [[0, 1], [1, 3], [2, 4]]


def test_nothing_is_aligned_behind_bytes_that_a_tokenizer_changed(english) -> None:
    lower = Tokenizer.from_str(english.to_str())
    lower.normalizer = normalizers.Lowercase()
    speller = Speller(Vocabulary(json.loads(lower.to_str())))
    text = "abc Dabc"
    ids = lower.encode(text, add_special_tokens=False).ids
    ends = speller.ends(text.encode(), ids)
    known = [end for end in ends.tolist() if end >= 0]
    assert known and max(known) <= 4 and ends[-1] == -1


def test_added_tokens_that_take_white_space_along(english) -> None:
    tokenizer = Tokenizer.from_str(english.to_str())
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, rstrip=True, special=True)])
    text = "one  <mask> two"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    ends = Speller(Vocabulary(json.loads(tokenizer.to_str()))).ends(text.encode(), ids)
    place = ids.index(tokenizer.token_to_id("<mask>"))
    assert ends[place - 1] == 3 and ends[place] == len("one  <mask> ") and ends[-1] == len(text)


@settings(max_examples=150, deadline=None)
@given(
    cuts=st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=60),
    rooms=st.tuples(st.integers(1, 12), st.integers(1, 12)),
)
def test_pieces_hold_the_same_bytes_on_both_sides(cuts, rooms) -> None:
    """Any byte may end a token of the first tokenization, a token of the second, and a line."""
    length = len(cuts)
    ends = [np.array([b + 1 for b, cut in enumerate(cuts) if cut[side] or b == length - 1]) for side in (0, 1)]
    pairs = shared_boundaries(*ends)
    is_line = np.array([cuts[int(ends[0][first]) - 1][2] for first, _ in pairs])
    found = list(paired_pieces(pairs, is_line, (len(ends[0]), len(ends[1])), rooms))
    place, used = [0, 0], 0
    for own, other, pair in found:
        assert (own.start, other.start, pair.start) == (*place, used)
        assert 0 < own.stop - own.start <= rooms[0] and 0 < other.stop - other.start <= rooms[1]
        assert ends[0][own.stop - 1] == ends[1][other.stop - 1]
        if own.stop < len(ends[0]) and not is_line[pair.stop - 1]:
            assert not is_line[pair].any()
        place, used = [own.stop, other.stop], pair.stop
    if used < len(pairs):  # what is left has a stretch that is too long for a piece
        gaps = pairwise([[-1, -1], *pairs.tolist()])
        assert any(b[0] - a[0] > rooms[0] or b[1] - a[1] > rooms[1] for a, b in gaps)
    else:
        assert place == [len(part) for part in ends]
