"""A damaged tokenizer.json gives one clear line, whatever is wrong with it."""

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pico
import pytest

from lepmerge.errors import LepmergeError, VocabularyError
from lepmerge.vocabulary.conversion import build_conversion
from lepmerge.vocabulary.valid_json import check_spec
from lepmerge.vocabulary.vocabulary import Vocabulary

VALUES = (None, True, -1, 0, 1 << 40, 2.5, "", "x", "\ud800", [], {}, [None], [1, 2], {"a": 1}, "Sequence")


@pytest.fixture(scope="module")
def specs() -> list[dict[str, Any]]:
    texts = pico.ENGLISH
    tokenizers = (pico.byte_level(texts, 300), pico.sentencepiece(texts, 320), pico.unigram(texts, 80))
    return [json.loads(tokenizer.to_str()) for tokenizer in (*tokenizers, pico.wordpiece(texts, 120))]


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("model", "vocab", "a"), "5", "model.vocab: the id of 'a' should be a whole number, not '5'"),
        (("model", "vocab"), [], "model.vocab should be an object of token: id"),
        (("model", "merges", 0), ["a"], "model.merges should hold pairs of tokens, not ['a']"),
        (("model", "merges", 0), "a nothing", "model.merges: 'a nothing' joins a token that model.vocab lacks"),
        (("model", "byte_fallback"), "yes", "model.byte_fallback should be a bool, not 'yes'"),
        (("added_tokens",), {}, "added_tokens should be a list"),
        (("added_tokens", 1), {"id": 1}, "added_tokens[1] should have an `id` and a `content`, not {'id': 1}"),
        (("added_tokens", 1, "special"), 1, "added_tokens[1].special should be true or false, not 1"),
        (("added_tokens", 1, "content"), "<s>", "added_tokens[1].content '<s>' is empty or occurs twice"),
        (("normalizer",), {"type": "Sequence", "normalizers": [5]}, "normalizer.normalizers[0] should be null or an"),
        (("post_processor",), "x", "post_processor should be null or an object with a `type`"),
    ],
)
def test_the_key_is_named(specs: list[dict[str, Any]], place: tuple[Any, ...], value: Any, message: str) -> None:
    spec = copy.deepcopy(specs[0])
    parent: Any = spec
    for key in place[:-1]:
        parent = parent[key]
    parent[place[-1]] = value
    with pytest.raises(VocabularyError) as raised:
        check_spec(spec, "folder/tokenizer.json")
    assert f"folder/tokenizer.json is not a valid tokenizer.json: {message}" in str(raised.value)


def test_a_token_for_unknown_text_may_be_missing_where_no_text_is_unknown(specs: list[dict[str, Any]]) -> None:
    """The vocabulary has a token for each byte: GPT-2's characters, or byte fallback."""
    for spec, byte in ((specs[0], "a"), (specs[1], "<0x41>")):
        model = {**spec["model"], "unk_token": "nothing"}
        check_spec({**spec, "model": model}, "")
        without = {token: id for token, id in model["vocab"].items() if token != byte}
        with pytest.raises(VocabularyError, match="unk_token 'nothing' is not in model.vocab"):
            check_spec({**spec, "model": {**model, "vocab": without, "merges": []}}, "")


def places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value in a parsed JSON file. Of long lists and objects, only the first values count."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items)[:40]:
        yield (*above, key)
        yield from places(inner, (*above, key))


def mutated(spec: dict[str, Any], generator: random.Random) -> dict[str, Any]:
    """Return the file with one value removed or replaced. Values near the top are chosen more often."""
    spec = copy.deepcopy(spec)
    ways = list(places(spec))
    top = [way for way in ways if len(way) <= 2]
    way = generator.choice(top if generator.random() < 0.3 else ways)
    parent: Any = spec
    for key in way[:-1]:
        parent = parent[key]
    if generator.random() < 0.25:
        del parent[way[-1]]
    else:
        parent[way[-1]] = generator.choice(VALUES)
    return spec


def mutate(specs: list[dict[str, Any]], folder: Path, *, seed: int, number: int) -> int:
    """Read mutated files and convert from and to them; return how many were refused, each with one line."""
    generator = random.Random(seed)
    good = Vocabulary(specs[0])
    num_refused = 0
    for _ in range(number):
        (folder / "tokenizer.json").write_text(json.dumps(mutated(generator.choice(specs), generator)))
        try:
            damaged = Vocabulary.in_folder(folder, num_rows=400)
            build_conversion(good, damaged.with_added_of(good), num_old_rows=300)
            build_conversion(damaged, good, num_old_rows=400)
        except LepmergeError as error:
            assert len(str(error).splitlines()) == 1
            num_refused += 1
    return num_refused


def test_mutations_end_in_one_line_or_success(specs: list[dict[str, Any]], tmp_path: Path) -> None:
    assert 100 < mutate(specs, tmp_path, seed=0, number=200) < 200


@pytest.mark.slow
def test_many_mutations(specs: list[dict[str, Any]], tmp_path: Path) -> None:
    assert mutate(specs, tmp_path, seed=1, number=6000) > 3000
