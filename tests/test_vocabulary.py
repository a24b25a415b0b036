"""A vocabulary: token strings become bytes, bytes become old tokens, added tokens find their places."""

import json
from pathlib import Path

import pico
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from lepmerge.errors import VocabularyError
from lepmerge.vocabulary.vocabulary import Vocabulary


def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    return Vocabulary(json.loads(tokenizer.to_str()))


def spelled(found: Vocabulary, ids: list[int]) -> list[str]:
    names = {id: token for token, id in found.all_ids.items()}
    return [names[id] for id in ids]


@pytest.fixture(scope="module")
def families() -> dict[str, Vocabulary]:
    texts = [*pico.RUSSIAN, *pico.ENGLISH]
    return {
        "byte_level": vocabulary(pico.byte_level(texts, 400)),
        "sentencepiece": vocabulary(pico.sentencepiece(texts, 450)),
        "unigram": vocabulary(pico.unigram(texts, 150)),
        "wordpiece": vocabulary(pico.wordpiece(texts, 300)),
        "plain": vocabulary(pico.bpe_of([("a", "b")], letters="ab ")),
    }


def test_family(families: dict[str, Vocabulary]) -> None:
    expected = {name: "sentencepiece" if name == "unigram" else name for name in families}
    assert {name: found.family for name, found in families.items()} == expected


def test_byte_level_token_bytes() -> None:
    found = vocabulary(pico.byte_level(["привет"], 300))
    for byte in range(256):
        assert found.token_bytes(reference.CHARACTER_OF[byte]) == bytes([byte])
    assert found.token_bytes("ĠÐŁ") == " П".encode()
    assert found.token_bytes("Ġ") == b" "
    assert found.token_bytes("Ð") == b"\xd0"


def test_characters_outside_the_byte_alphabet_are_text() -> None:
    found = vocabulary(pico.byte_level(["x"], 300))
    assert found.token_bytes("слово") == "слово".encode()


def test_sentencepiece_token_bytes(families: dict[str, Vocabulary]) -> None:
    found = families["sentencepiece"]
    assert found.token_bytes("▁мо▁") == " мо ".encode()
    assert found.token_bytes("<0x0A>") == b"\n"
    assert found.token_bytes("<0xFF>") == b"\xff"
    assert found.token_bytes("<0xGG>") == b"<0xGG>"
    without = Vocabulary({**found.spec, "model": {**found.spec["model"], "byte_fallback": False}})
    assert without.token_bytes("<0x0A>") == b"<0x0A>"


def test_wordpiece_token_bytes(families: dict[str, Vocabulary]) -> None:
    found = families["wordpiece"]
    assert found.token_bytes("##ing") == b"ing"
    assert found.token_bytes("the") == b" the"
    other = Vocabulary({**found.spec, "model": {**found.spec["model"], "continuing_subword_prefix": "@@"}})
    assert (other.token_bytes("@@ing"), other.token_bytes("##ing")) == (b"ing", b" ##ing")


@pytest.mark.parametrize("name", ["byte_level", "sentencepiece", "unigram", "plain"])
def test_token_bytes_join_to_the_text(families: dict[str, Vocabulary], name: str) -> None:
    """The bytes of a text's tokens, joined, are the text, except for a prefix space."""
    found = families[name]
    for text in ("ab", "ab ab") if name == "plain" else pico.RUSSIAN:
        ids = found.tokenizer.encode(text, add_special_tokens=False).ids
        joined = b"".join(found.bytes_of[id] for id in ids).decode()
        assert joined.removeprefix(" ") == text


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=12) | st.text(max_size=8).map(str.encode))
@pytest.mark.parametrize("name", ["byte_level", "sentencepiece"])
def test_any_bytes_are_spelled_exactly(families: dict[str, Vocabulary], name: str, data: bytes) -> None:
    """A vocabulary that holds all bytes spells any byte string, valid UTF-8 or not, without a prefix space."""
    found = families[name]
    (ids,) = found.encode([data])
    assert b"".join(found.bytes_of[id] for id in ids) == data


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.sampled_from("the quick мо дель 12▁\n"), max_size=12))
@pytest.mark.parametrize("name", ["byte_level", "sentencepiece"])
def test_text_falls_into_the_tokens_of_the_reference(families: dict[str, Vocabulary], name: str, text: str) -> None:
    if name == "sentencepiece" and "▁" in text:
        return  # a literal ▁ stands for a space there
    found = families[name]
    tokens = reference.Tokens(found.spec)
    assert found.encode([text.encode()])[0] == tokens.encoded(text.encode())


def test_a_batch_is_encoded_item_by_item(families: dict[str, Vocabulary]) -> None:
    data = [b"the quick", b"", b"\xd0", "модель ".encode(), b"\xff\xfe ab", b" ", b"the"]
    for name in ("byte_level", "sentencepiece", "unigram", "wordpiece"):
        assert families[name].encode(data) == [families[name].encode([item])[0] for item in data]


def test_added_tokens_and_templates_stay_out_of_encoding() -> None:
    """Text that looks like a special token is spelled with ordinary tokens, and no <s> is put before it."""
    tokenizer = pico.byte_level(pico.ENGLISH, 300)
    tokenizer.add_tokens([AddedToken("quick", special=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=8)
    found = vocabulary(tokenizer)
    (ids,) = found.encode([b"<s>quick</s>"])
    assert b"".join(found.bytes_of[id] for id in ids) == b"<s>quick</s>"
    assert not {token.id for token in found.added.values()} & set(ids)


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
@pytest.mark.parametrize("split", [True, False])
def test_metaspace_puts_no_space_before(scheme: str, split: bool) -> None:
    merges = [("▁", "a"), ("a", "b")]
    tokenizer = pico.bpe_of(merges, letters="▁ab")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    found = vocabulary(tokenizer)
    assert found.family == "sentencepiece"
    assert [spelled(found, ids) for ids in found.encode([b"ab", b" ab", b"ab ab"])] == [
        ["ab"],
        ["▁a", "b"],
        ["ab", "▁a", "b"],
    ]


def test_byte_level_prefix_space_is_left_out() -> None:
    tokenizer = pico.bpe_of([("Ġ", "a"), ("Ġa", "b")], letters=pico.alphabet())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    found = vocabulary(tokenizer)
    assert spelled(found, found.encode([b"ab"])[0]) == ["a", "b"]
    assert spelled(found, found.encode([b" ab"])[0]) == ["Ġab"]


def test_prepending_and_stripping_normalizers_are_left_out() -> None:
    tokenizer = pico.bpe_of([("▁", "a")], letters="▁ab")
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Strip(), normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])]
    )
    found = vocabulary(tokenizer)
    assert [spelled(found, ids) for ids in found.encode([b"ab", b" ab ", b" "])] == [
        ["a", "b"],
        ["▁a", "b", "▁"],
        ["▁"],
    ]


@pytest.mark.parametrize(
    ("normalizer", "text"),
    [(normalizers.NFC(), "и\u0306"), (normalizers.Lowercase(), "The Quick"), (normalizers.NFKC(), "ﬁ½")],
)
def test_what_a_normalizer_would_change_is_spelled_by_the_bare_model(normalizer, text: str) -> None:
    tokenizer = pico.byte_level(pico.ENGLISH, 300)
    tokenizer.normalizer = normalizer
    found = vocabulary(tokenizer)
    (ids,) = found.encode([text.encode()])
    assert b"".join(found.bytes_of[id] for id in ids) == text.encode()
    changed = tokenizer.encode(text).ids
    assert b"".join(found.bytes_of[id] for id in changed) != text.encode()


def test_digits_are_split_as_the_tokenizer_splits_them() -> None:
    tokenizer = pico.bpe_of([("1", "2"), ("12", "3")], letters=pico.alphabet())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    found = vocabulary(tokenizer)
    assert found.family == "byte_level"
    assert spelled(found, found.encode([b"x123"])[0]) == ["x", "1", "2", "3"]


def test_ignore_merges_finds_whole_words() -> None:
    """As in Llama-3, a word that is a token is used whole, even if no merges produce it."""
    tokenizer = pico.bpe_of([("a", "b")], letters=[*pico.alphabet(), "abcd"], ignore_merges=True)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found = vocabulary(tokenizer)
    assert spelled(found, found.encode([b"abcd abcd"])[0]) == ["abcd", "Ġ", "ab", "c", "d"]


def test_unigram_splits_by_scores() -> None:
    scores = [("<unk>", 0.0), ("▁", -3.0), ("a", -4.0), ("b", -4.0), ("ab", -1.0), ("aba", -1.5)]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.add_special_tokens(["<unk>"])
    found = vocabulary(tokenizer)
    assert [spelled(found, ids) for ids in found.encode([b"abab", b" aba", b"aza", b"z"])] == [
        ["ab", "ab"],
        ["▁", "aba"],
        ["a", "a"],
        [],
    ]


def test_wordpiece_begins_words_with_a_space() -> None:
    model = models.WordPiece({"[UNK]": 0, "the": 1, "##se": 2, "se": 3}, unk_token="[UNK]")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(["[UNK]"])
    found = vocabulary(tokenizer)
    assert found.encode([b" these the"])[0] == [1, 2, 1]
    assert found.spells([1, 2, 1], b" these the")
    assert not found.spells(found.encode([b"these"])[0], b"these")  # no way to write a word start without a space
    assert found.encode([b" zz"])[0] == []


def test_equal_bytes_same_string_then_same_kind_then_lowest_id() -> None:
    letters = ["<unk>", "A", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", " "]
    tokenizer = pico.bpe_of([], letters=letters, unk_token="<unk>", byte_fallback=True)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    found = vocabulary(tokenizer)
    ids = found.model_ids
    assert found.id_of_bytes(b"A") == ids["A"]
    assert found.id_of_bytes(b"A", byte_token=True) == ids["<0x41>"]
    assert found.id_of_bytes(b"A", token="<0x41>") == ids["<0x41>"]
    assert found.id_of_bytes(b" ") == ids["▁"]
    assert found.id_of_bytes(b" ", token=" ") == ids[" "]
    assert found.id_of_bytes(b" ", byte_token=True) == ids["<0x20>"]
    assert found.id_of_bytes(b"B", byte_token=False) == ids["<0x42>"]
    assert found.id_of_bytes(b"AB") is None


def added(tokenizer: Tokenizer, *tokens: str | AddedToken, special: bool = True) -> Vocabulary:
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(list(tokens))
    return vocabulary(tokenizer)


def test_runs_of_spaces_match_ordinary_tokens_both_ways() -> None:
    """GPT-NeoX's runs of spaces are added tokens; elsewhere they are ordinary ones."""
    with_added = added(pico.byte_level(["x"], 260), AddedToken("    ", normalized=False), special=False)
    letters = [*pico.alphabet(), "ĠĠĠĠ"]
    tokenizer = pico.bpe_of([], letters=letters)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    ordinary = vocabulary(tokenizer)
    run = with_added.added["    "]
    assert with_added.id_of_bytes(b"    ") == run.id
    assert ordinary.id_of_added(run) == ordinary.model_ids["ĠĠĠĠ"]
    assert ordinary.ids_in(with_added)[ordinary.model_ids["ĠĠĠĠ"]] == run.id
    assert ordinary.with_added_of(with_added).added.keys() == {*pico.SPECIAL}  # the run of spaces is no new token


def test_added_tokens_are_appended_in_the_order_of_their_ids() -> None:
    one = added(pico.byte_level(["x"], 259), "<|c|>", "<|a|>")
    two = added(pico.byte_level(["x"], 259), "<|a|>", "<|b|>", "<|d|>", "<|c|>")
    both = one.with_added_of(two)
    assert both.size == one.size + 2
    assert (both.all_ids["<|b|>"], both.all_ids["<|d|>"]) == (one.size, one.size + 1)
    assert (both.all_ids["<|c|>"], both.all_ids["<|a|>"]) == (one.all_ids["<|c|>"], one.all_ids["<|a|>"])
    assert not both.unfaithful_ids()
    assert one.with_added_of(one) is one


def test_added_tokens_find_their_ids_by_content() -> None:
    one = added(pico.byte_level(pico.ENGLISH, 300), "<|c|>", "<|a|>")
    two = added(pico.byte_level(pico.RUSSIAN, 300), "<|a|>", "<|b|>")
    ids = one.ids_in(two)
    assert ids[one.all_ids["<|a|>"]] == two.all_ids["<|a|>"]
    assert one.all_ids["<|c|>"] not in ids
    for id, new_id in ids.items():
        if id in one.bytes_of:
            assert one.bytes_of[id] == two.bytes_of[new_id]


@pytest.mark.parametrize("build", [pico.byte_level, pico.sentencepiece])
def test_appended_ids_are_those_of_the_library_despite_holes(build) -> None:
    holed = vocabulary(pico.with_holes(build(pico.ENGLISH, 320), first=300, width=11))
    chat = added(pico.byte_level(["x"], 259), *pico.CHAT_TOKENS)
    both = holed.with_added_of(chat)
    assert [both.all_ids[token] for token in pico.CHAT_TOKENS] == [holed.size + n for n in range(3)]
    for token in pico.CHAT_TOKENS:
        assert both.tokenizer.encode(f"x{token}x", add_special_tokens=False).ids.count(both.all_ids[token]) == 1
    for text in pico.ENGLISH:
        assert both.tokenizer.encode(text).ids == holed.tokenizer.encode(text).ids


def test_a_special_token_that_is_ordinary_here_keeps_its_id() -> None:
    letters = [*pico.alphabet(), "<|end|>", "zz"]
    tokenizer = pico.bpe_of([], letters=letters)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found = vocabulary(tokenizer)
    both = found.with_added_of(added(pico.byte_level(["x"], 259), *pico.CHAT_TOKENS))
    assert both.added["<|end|>"].id == found.model_ids["<|end|>"]
    assert both.tokenizer.encode("a<|end|>b").ids[1] == found.model_ids["<|end|>"]
    assert both.added["<|user|>"].id == found.size + len(pico.SPECIAL)
    assert "<|end|>" not in both.ordinary


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not readable JSON"),
        ("[]", "should be an object with a `model`"),
        ('{"model": {"type": "Magic", "vocab": {}}}', "model.type 'Magic' is not one of BPE"),
    ],
)
def test_unreadable_tokenizers(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(VocabularyError, match=message) as raised:
        _ = Vocabulary.in_folder(tmp_path).spec
    assert str(tmp_path / "tokenizer.json") in str(raised.value)


def test_a_folder_without_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match="has no tokenizer: expected tokenizer.json, tokenizer.model"):
        _ = Vocabulary.in_folder(tmp_path).spec


def test_a_tokenizer_that_the_library_refuses(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(
        json.dumps(
            {
                "version": "1.0",
                "normalizer": {"type": "Magic"},
                "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []},
            }
        )
    )
    with pytest.raises(VocabularyError, match="the tokenizers library refuses it"):
        _ = Vocabulary.in_folder(tmp_path).tokenizer
