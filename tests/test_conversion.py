"""T maps every new row to the old rows with the same bytes: against the naive reference, and case by case."""

import json

import pico
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers

from lepmerge.tensors import LazyTensor, Workspace
from lepmerge.vocabulary.conversion import (
    ADDED,
    DECOMPOSED,
    EXACT,
    INEXACT,
    KINDS,
    NONE,
    Conversion,
    build_conversion,
    converted,
    differing_tokens,
)
from lepmerge.vocabulary.vocabulary import Vocabulary

NAMES = {"exact": EXACT, "decomposed": DECOMPOSED, "inexact": INEXACT, "added": ADDED, "none": NONE}


class Table(LazyTensor):
    """A lazy tensor that holds its rows."""

    def read(self, rows, workspace: Workspace) -> torch.Tensor:
        return self.values[rows.start : rows.stop] if isinstance(rows, range) else self.values[rows]


def table(values: torch.Tensor) -> Table:
    made = Table(shape=tuple(values.shape), dtype=values.dtype)
    object.__setattr__(made, "values", values)
    return made


def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    return Vocabulary(json.loads(tokenizer.to_str()))


def rows_of(conversion: Conversion) -> list[tuple[int, list[int]]]:
    """Return (kind, old ids) of every row."""
    starts, old = conversion.start_V1.tolist(), conversion.old_N.tolist()
    return [(kind, old[a:b]) for kind, a, b in zip(conversion.kind_V.tolist(), starts, starts[1:], strict=False)]


def assert_is_reference(conversion: Conversion, old: Vocabulary, new: Vocabulary) -> None:
    """Assert that kinds and old ids equal the reference's. An added token that cannot be spelled has kind none."""
    naive = reference.conversion(reference.Tokens(old.spec), reference.Tokens(new.spec), conversion.num_rows)
    wanted = [(NAMES[row.kind if row.ids else "none"], row.ids) for row in naive]
    assert rows_of(conversion) == wanted


BYTE_LEVEL_MERGES = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), max_size=40)


def random_byte_level(choices: list[tuple[int, int]], favoured: bytes) -> Tokenizer:
    """Return a byte-level BPE tokenizer whose merges join earlier tokens, mostly of some favoured bytes."""
    tokens = [reference.CHARACTER_OF[byte] for byte in favoured]
    merges = []
    for left, right in choices:
        pair = (tokens[left % len(tokens)], tokens[right % len(tokens)])
        if "".join(pair) not in tokens and len("".join(pair)) < 12:
            merges.append(pair)
            tokens.append("".join(pair))
    tokenizer = pico.bpe_of(merges, letters=pico.alphabet())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def random_sentencepiece(choices: list[tuple[int, int]], favoured: str) -> Tokenizer:
    tokens = list(favoured)
    merges = []
    for left, right in choices:
        pair = (tokens[left % len(tokens)], tokens[right % len(tokens)])
        if "".join(pair) not in tokens and len("".join(pair)) < 8:
            merges.append(pair)
            tokens.append("".join(pair))
    letters = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *favoured]
    tokenizer = pico.bpe_of(merges, letters=letters, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.add_special_tokens(["<unk>"])
    return tokenizer


@settings(max_examples=60, deadline=None)
@given(old=BYTE_LEVEL_MERGES, new=BYTE_LEVEL_MERGES)
@pytest.mark.parametrize("families", ["bb", "bs", "sb", "ss"])
def test_random_vocabularies_equal_the_reference(families: str, old, new) -> None:
    """Random merges of bytes that are often not valid UTF-8; every token is spelled by the old vocabulary."""
    favoured = " ab1ме".encode()

    def build(family: str, choices: list[tuple[int, int]]) -> Vocabulary:
        made = random_byte_level(choices, favoured) if family == "b" else random_sentencepiece(choices, "▁ab1м")
        return vocabulary(made)

    first, second = build(families[0], old), build(families[1], new)
    conversion = build_conversion(first, second, num_old_rows=first.size)
    assert_is_reference(conversion, first, second)
    kinds = [kind for id, (kind, _) in enumerate(rows_of(conversion)) if id in second.bytes_of]
    assert set(kinds) <= {EXACT, DECOMPOSED}


TEXTS = [*pico.RUSSIAN, *pico.ENGLISH]


@pytest.mark.parametrize("old", ["byte_level", "sentencepiece", "holes", "chat"])
@pytest.mark.parametrize("new", ["byte_level", "sentencepiece", "holes", "chat"])
def test_trained_vocabularies_equal_the_reference(old: str, new: str) -> None:
    def build(name: str, texts: list[str], size: int) -> Vocabulary:
        tokenizer = pico.sentencepiece(texts, size) if name == "sentencepiece" else pico.byte_level(texts, size)
        if name == "holes":
            tokenizer = pico.with_holes(tokenizer, first=280, width=5)
        if name == "chat":
            tokenizer.add_special_tokens([*pico.CHAT_TOKENS, "</s>"])
        return vocabulary(tokenizer)

    first, second = build(old, pico.ENGLISH, 380), build(new, TEXTS, 520)
    conversion = build_conversion(first, second, num_old_rows=first.size + 3, num_rows=second.size + 4)
    assert_is_reference(conversion, first, second)
    assert conversion.num_rows == second.size + 4
    named = {*second.bytes_of, *(token.id for token in second.added.values())}
    assert {id for id, (kind, _) in enumerate(rows_of(conversion)) if kind == NONE} == (
        set(range(conversion.num_rows)) - named
    )
    assert sum(conversion.counts.values()) == conversion.num_rows and set(conversion.counts) == set(KINDS)


def test_missing_byte_symbols_are_reported() -> None:
    """As in SmolLM2: tokens with bytes that the old vocabulary cannot write are inexact, or have no source."""
    letters = [letter for letter in pico.alphabet() if reference.BYTE_OF[letter] not in (0xD0, 0x07)]
    old = pico.bpe_of([], letters=letters)
    old.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    new = pico.bpe_of([("Ð", "¼"), ("a", "Ð¼")], letters=pico.alphabet())
    new.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    first, second = vocabulary(old), vocabulary(new)
    conversion = build_conversion(first, second, num_old_rows=first.size)
    found = dict(zip(second.ordinary, rows_of(conversion), strict=True))
    assert found["Ð"] == found[reference.CHARACTER_OF[7]] == (NONE, [])
    assert found["Ð¼"] == (INEXACT, [first.model_ids["¼"]])
    assert found["aÐ¼"] == (INEXACT, [first.model_ids["a"], first.model_ids["¼"]])
    assert conversion.counts == {
        "exact": 254, "decomposed": 0, "inexact": 2, "added": 0, "without_source": 2
    }  # fmt: skip


def test_byte_tokens_that_equal_ordinary_ones() -> None:
    """Within SentencePiece each of the two finds itself. A byte-level token finds the ordinary one."""
    letters = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "A", "▁"]
    tokenizer = pico.bpe_of([], letters=letters, unk_token="<unk>", byte_fallback=True)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    first = vocabulary(tokenizer)
    other = vocabulary(pico.bpe_of([], letters=letters[::-1], unk_token="<unk>", byte_fallback=True))
    other.spec["normalizer"] = first.spec["normalizer"]
    byte_level = vocabulary(pico.byte_level(["x"], 259))
    ids = {token: id for token, id in first.model_ids.items()}
    to_other = rows_of(build_conversion(first, other, num_old_rows=first.size))
    assert all(to_other[other.model_ids[token]] == (EXACT, [ids[token]]) for token in letters)
    to_byte_level = rows_of(build_conversion(first, byte_level, num_old_rows=first.size))
    assert to_byte_level[byte_level.model_ids["A"]] == (EXACT, [ids["A"]])
    assert to_byte_level[byte_level.model_ids["Ġ"]] == (EXACT, [ids["▁"]])
    assert to_byte_level[byte_level.model_ids["B"]] == (EXACT, [ids["<0x42>"]])


@pytest.mark.parametrize("normalizer", [normalizers.NFC(), normalizers.Lowercase(), normalizers.NFKC()])
def test_normalizers_of_the_old_tokenizer_lose_nothing(normalizer) -> None:
    old = pico.byte_level(pico.ENGLISH, 300)
    old.normalizer = normalizer
    first, second = vocabulary(old), vocabulary(pico.byte_level(["ПРИВЕТ The ﬁ½ и\u0306и\u0306"] * 2, 300))
    conversion = build_conversion(first, second, num_old_rows=first.size)
    assert conversion.counts["inexact"] == 0
    for id, (kind, ids) in enumerate(rows_of(conversion)):
        if kind == DECOMPOSED:
            assert b"".join(first.bytes_of[old_id] for old_id in ids) == second.bytes_of[id]


def test_from_wordpiece_and_unigram() -> None:
    """They have no byte fallback. A token that they cannot spell must be inexact or without source, never exact."""
    new = vocabulary(pico.byte_level(TEXTS, 500))
    for tokenizer in (pico.wordpiece(TEXTS, 300), pico.unigram(TEXTS, 150)):
        old = vocabulary(tokenizer)
        conversion = build_conversion(old, new, num_old_rows=old.size)
        counts = conversion.counts
        assert min(counts["exact"], counts["decomposed"], counts["without_source"]) > 0
        for id, (kind, ids) in enumerate(rows_of(conversion)):
            spelled = b"".join(old.bytes_of.get(old_id, b"") for old_id in ids)
            if kind in (EXACT, DECOMPOSED):
                assert spelled == new.bytes_of[id]
            elif kind == INEXACT:
                assert spelled != new.bytes_of[id] and ids


def test_to_wordpiece_and_unigram() -> None:
    old = vocabulary(pico.byte_level(TEXTS, 400))
    for tokenizer in (pico.wordpiece(TEXTS, 300), pico.unigram(TEXTS, 150)):
        new = vocabulary(tokenizer)
        conversion = build_conversion(old, new, num_old_rows=old.size)
        for id, (kind, ids) in enumerate(rows_of(conversion)):
            if id in new.bytes_of:
                assert kind in (EXACT, DECOMPOSED)
                assert b"".join(old.bytes_of[old_id] for old_id in ids) == new.bytes_of[id]


def test_added_tokens_match_by_content_and_never_by_id() -> None:
    old, new = pico.byte_level(["x"], 259), pico.byte_level(["x"], 259)
    old.add_special_tokens(["<|a|>", "<|b|>"])
    new.add_special_tokens(["<|b|>", "<|new|>", "<|a|>"])
    new.add_tokens([AddedToken("xx", special=False)])
    first, second = vocabulary(old), vocabulary(new)
    found = rows_of(build_conversion(first, second, num_old_rows=first.size))
    assert found[second.added["<|a|>"].id] == (ADDED, [first.added["<|a|>"].id])
    assert found[second.added["<|b|>"].id] == (ADDED, [first.added["<|b|>"].id])
    for content in ("<|new|>", "xx"):
        kind, ids = found[second.added[content].id]
        assert kind == ADDED and b"".join(first.bytes_of[id] for id in ids) == content.encode()


def test_old_ids_without_a_row_are_not_used() -> None:
    first, second = vocabulary(pico.byte_level(TEXTS, 400)), vocabulary(pico.byte_level(TEXTS, 450))
    conversion = build_conversion(first, second, num_old_rows=300)
    assert int(conversion.old_N.max()) < 300


def test_same_vocabulary_is_the_identity() -> None:
    found = vocabulary(pico.with_holes(pico.byte_level(TEXTS, 400), first=300, width=4))
    conversion = build_conversion(found, found, num_old_rows=found.size)
    rows = table(torch.randn(found.size, 4))
    assert conversion.identity and converted(rows, conversion) is rows
    assert not build_conversion(found, found, num_old_rows=found.size, num_rows=found.size + 1).identity
    assert [kind for kind, _ in rows_of(conversion)[300:304]] == [NONE] * 4


def test_converted_rows_are_means_and_single_rows_keep_their_bits() -> None:
    first, second = vocabulary(pico.byte_level(pico.ENGLISH, 330)), vocabulary(pico.byte_level(TEXTS, 500))
    conversion = build_conversion(first, second, num_old_rows=first.size, num_rows=second.size + 2)
    old_VD = torch.randn(first.size, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    old_VD[::2, 1] = -0.0
    new = converted(table(old_VD), conversion)
    got_VD = new.rows()
    assert got_VD.dtype == torch.bfloat16 and got_VD.shape == (second.size + 2, 6)
    for id, (_, ids) in enumerate(rows_of(conversion)):
        if len(ids) == 1:
            assert reference.same_bits(got_VD[id], old_VD[ids[0]])
        elif ids:
            assert torch.allclose(got_VD[id].double(), old_VD[ids].double().mean(0), rtol=2**-8, atol=1e-8)
        else:
            assert not got_VD[id].any()
    some = torch.tensor([5, 499, 3, 480, 5])
    assert torch.equal(new.read(some, Workspace()).bfloat16(), got_VD[some])
    assert torch.equal(new.rows(400, 450), got_VD[400:450])


def test_differing_tokens() -> None:
    one = vocabulary(pico.byte_level(pico.ENGLISH, 320))
    chat = pico.byte_level(pico.ENGLISH, 320)
    chat.add_special_tokens(list(pico.CHAT_TOKENS))
    assert differing_tokens(one, one) == {} == differing_tokens(one, vocabulary(chat))
    swapped = json.loads(json.dumps(one.spec))
    vocab = swapped["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    assert differing_tokens(one, Vocabulary(swapped)).keys() == {"a", "b"}
    (extra,) = differing_tokens(one, vocabulary(pico.byte_level(pico.ENGLISH, 321))).items()
    assert extra[1] == (None, 320)
