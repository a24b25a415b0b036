"""tokenizer extend: continued BPE as a naive reference does it, merge by merge; checks; a folder that loads."""

import json
import subprocess
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import pico
import pytest
import reference
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

import lepmerge
from lepmerge.corpus import Corpus
from lepmerge.errors import VocabularyError
from lepmerge.json_text import to_json
from lepmerge.tokenization.build import Extend, build_tokenizer
from lepmerge.tokenization.checks import check_ids, check_reachable, check_round_trip, random_texts
from lepmerge.tokenization.extend import extended, learn
from lepmerge.tokenization.script import allowed_tokens
from lepmerge.tokenization.words import SPLITS_BEFORE_SPACES, count_words
from lepmerge.vocabulary.vocabulary import Vocabulary

TEXT = [
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "В чащах юга жил бы цитрус? Да, но фальшивый экземпляр!",
    "Привет, мир! Как дела? Сегодня 12 мая 2024 года, 3,5 градуса.",
    "The quick brown fox jumps over the lazy dog 1234567890 times.",
] * 30


def naive(words: Counter[str], vocabulary: Vocabulary, num_tokens: int, allowed) -> list[tuple[str, str]]:
    """Return the merges of continued BPE, counted anew from scratch before every merge."""
    model = Tokenizer.from_str(
        json.dumps({"version": "1.0", "added_tokens": [], "model": vocabulary.spec["model"]})
    ).model
    split = {word: [token.value for token in model.tokenize(word)] for word in words}
    order = {token: id for token, id in vocabulary.model_ids.items()}
    known = set(order)
    merges: list[tuple[str, str]] = []
    while len(order) - len(known) < num_tokens:
        counts: Counter[tuple[str, str]] = Counter()
        for word, tokens in split.items():
            for pair in zip(tokens, tokens[1:], strict=False):
                counts[pair] += words[word]
        good = [
            pair for pair, count in counts.items()
            if count >= 2 and "".join(pair) not in known and allowed(vocabulary.token_bytes("".join(pair)))
        ]  # fmt: skip
        if not good:
            break
        best = min(good, key=lambda pair: (-counts[pair], order[pair[0]], order[pair[1]]))
        merges.append(best)
        order.setdefault("".join(best), max(order.values()) + 1)
        for word, tokens in split.items():
            joined: list[str] = []
            place = 0
            while place < len(tokens):
                if tuple(tokens[place : place + 2]) == best:
                    joined.append("".join(best))
                    place += 2
                else:
                    joined.append(tokens[place])
                    place += 1
            split[word] = joined
    return merges


@pytest.fixture(scope="module")
def byte_level() -> Vocabulary:
    return Vocabulary(json.loads(pico.byte_level(pico.ENGLISH, 330).to_str()))


@settings(max_examples=60, deadline=None)
@given(
    words=st.dictionaries(st.text("абвгдaeio", min_size=1, max_size=9), st.integers(1, 9), min_size=1, max_size=25),
    num_tokens=st.integers(1, 30),
    scripts=st.sampled_from([(), ("Cyrillic",), ("Latin",)]),
)
def test_equals_the_naive_reference(byte_level, words: dict[str, int], num_tokens: int, scripts) -> None:
    alphabet = reference.CHARACTER_OF
    written = Counter({"".join(alphabet[byte] for byte in f" {word}".encode()): n for word, n in words.items()})
    allowed = allowed_tokens(scripts)
    found = learn(written.items(), byte_level, num_tokens=num_tokens, allowed=allowed)
    expected = naive(written, byte_level, num_tokens, allowed)
    assert list(found.merges) == expected
    assert list(found.tokens) == list(dict.fromkeys("".join(pair) for pair in expected))
    new = extended(byte_level, found)
    check_ids(byte_level, new)
    check_reachable(new, [new.model_ids[token] for token in found.tokens])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "ru.txt"
    path.write_text("\n\n".join(TEXT), encoding="utf-8")
    return path


def extend(base: Path, corpus: Path, output: Path, **settings) -> dict:
    return build_tokenizer(Extend(model=str(base), corpus=Corpus([str(corpus)]), **settings), output)


def with_string_merges() -> Tokenizer:
    tokenizer = pico.byte_level(pico.ENGLISH, 330)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return pico.edited(tokenizer, model={"merges": [" ".join(pair) for pair in merges]})


FAMILIES = {
    "byte_level": lambda: pico.byte_level(pico.ENGLISH, 330),
    "string merges": with_string_merges,
    "ignore_merges": lambda: pico.edited(pico.byte_level(pico.ENGLISH, 330), model={"ignore_merges": True}),
    "sentencepiece": lambda: pico.sentencepiece(pico.ENGLISH, 400),
    "holes": lambda: pico.with_holes(pico.byte_level(pico.ENGLISH, 330), first=300, width=5),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_folder(tmp_path: Path, corpus: Path, family: str) -> None:
    base = pico.save_model(tmp_path / "base", FAMILIES[family](), chat=True, num_rows=512)
    report = extend(base, corpus, tmp_path / "new", num_tokens=40, scripts=["Cyrillic"])
    assert report["checks"]["new_tokens"] == 40 and report["checks"]["unreachable"] == 0
    assert report["symbols_per_token"]["new"] > 1.2 * report["symbols_per_token"]["old"]
    old, new = AutoTokenizer.from_pretrained(base), AutoTokenizer.from_pretrained(tmp_path / "new")
    for text in [*pico.ENGLISH, "x = 1234; naïve café 你好 γειά"]:
        assert old(text).input_ids == new(text).input_ids
    for text in TEXT[:3]:
        assert new.decode(new(text).input_ids, skip_special_tokens=True) == text
        assert len(new(text).input_ids) < len(old(text).input_ids)
    chat = [{"role": "user", "content": "Привет"}]
    assert old.apply_chat_template(chat, tokenize=False) == new.apply_chat_template(chat, tokenize=False)
    step = {"op": "swap_vocabulary", "tokenizer": str(tmp_path / "new")}
    folder = pico.run_recipe(tmp_path / "run", {"instruct": base}, [step])
    assert lepmerge.open_model(folder).num_rows >= report["size"]


def test_twice_the_same(tmp_path: Path, corpus: Path) -> None:
    base = pico.save_model(tmp_path / "base", pico.byte_level(pico.ENGLISH, 330))
    for name in "ab":
        extend(base, corpus, tmp_path / name, num_tokens=30)
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == (tmp_path / "b" / "tokenizer.json").read_bytes()


def test_only_from_another_tokenizer(tmp_path: Path, corpus: Path, russian) -> None:
    base = pico.save_model(tmp_path / "base", pico.byte_level(pico.ENGLISH, 330))
    pico.save_tokenizer(pico.byte_level(TEXT, 700), tmp_path / "other")
    other = str(tmp_path / "other")
    extend(base, corpus, tmp_path / "new", num_tokens=25, scripts=["Cyrillic"], only_from=other)
    old, new, other = (Vocabulary.in_folder(tmp_path / name) for name in ("base", "new", "other"))
    added = [new.bytes_of[id] for id in range(old.size, new.size)]
    assert len(added) == 25 and set(added) <= set(other.bytes_of.values())


@pytest.mark.parametrize(
    ("content", "arguments", "part"),
    [
        ("", {"num_tokens": 5}, "empty"),
        ("\n\n  \n", {"num_tokens": 5}, "empty"),
        ("hello " * 50, {"num_tokens": 5, "scripts": ["Cyrillic"]}, "only 0 new tokens of the script Cyrillic"),
        ("привет " * 50, {"num_tokens": 5000}, "5000 were requested"),
        ("привет " * 50, {"vocab_size": 5}, "tokens already"),
        ("привет " * 50, {"num_tokens": 5, "scripts": ["Klingon"]}, "no script 'Klingon'"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_faults(tmp_path: Path, content: str, arguments: dict, part: str) -> None:
    base = pico.save_model(tmp_path / "base", pico.byte_level(pico.ENGLISH, 330))
    (tmp_path / "text.txt").write_text(content, encoding="utf-8")
    before = pico.tree(tmp_path)
    with pytest.raises(lepmerge.LepmergeError) as caught:
        extend(base, tmp_path / "text.txt", tmp_path / "new", **arguments)
    assert part in str(caught.value) and pico.tree(tmp_path) == before


def test_unigram_and_wordpiece_are_refused(tmp_path: Path, corpus: Path) -> None:
    for name, tokenizer in (
        ("unigram", pico.unigram(pico.ENGLISH, 200)),
        ("wordpiece", pico.wordpiece(pico.ENGLISH, 200)),
    ):
        folder = tmp_path / name
        pico.save_tokenizer(tokenizer, folder)
        with pytest.raises(VocabularyError, match="only BPE vocabularies"):
            extend(folder, corpus, tmp_path / "new", num_tokens=5)


def test_checks_find_what_is_wrong(byte_level) -> None:
    spec = json.loads(json.dumps(byte_level.spec))
    spec["model"]["vocab"]["zzzz"] = byte_level.size
    with pytest.raises(VocabularyError, match="unreachable: .* b'zzzz'"):
        check_reachable(Vocabulary(spec), [byte_level.size])
    tokens = list(spec["model"]["vocab"])[-3:-1]
    vocab = spec["model"]["vocab"]
    vocab[tokens[0]], vocab[tokens[1]] = vocab[tokens[1]], vocab[tokens[0]]
    with pytest.raises(VocabularyError, match="2 old tokens have another id"):
        check_ids(byte_level, Vocabulary(spec))
    lossy = {**byte_level.spec, "normalizer": {"type": "Lowercase"}}
    with pytest.raises(VocabularyError, match="does not decode 1 texts"):
        check_round_trip(Vocabulary(lossy), ["ABC"])
    assert len(set(random_texts(1000))) > 900 and random_texts(50) == random_texts(50)


def test_command(tmp_path: Path, corpus: Path) -> None:
    base = pico.save_model(tmp_path / "base", pico.byte_level(pico.ENGLISH, 330))
    command = ["tokenizer", "extend", base, corpus, "--add", 20, "-o", tmp_path / "new"]
    result = pico.command(*command)
    assert result.exit_code == 0 and "20 of them new" in result.stdout, result.output
    before = pico.tree(tmp_path)
    again = pico.command(*command)
    assert (again.exit_code, again.stdout) == (0, result.stdout) and pico.tree(tmp_path) == before
    command[5] = 21
    pico.assert_one_line_error(pico.command(*command), 1, "is not empty", "--overwrite")
    assert "21 of them new" in pico.command(*command, "--overwrite").stdout
    assert Vocabulary.in_folder(tmp_path / "new").size == Vocabulary.in_folder(base).size + 21
    pico.assert_one_line_error(pico.command(*command[:-1], base / "new", "--overwrite"), 1, "is inside the input")
    (tmp_path / "x.txt").write_bytes(b"\x00\x01")
    command[3], command[-1] = tmp_path / "x.txt", tmp_path / "other"
    pico.assert_one_line_error(pico.command(*command), 1, "x.txt", "NUL characters")


@pytest.mark.parametrize("family", ["byte_level", "sentencepiece"])
def test_layout_before_the_added_tokens(tmp_path: Path, corpus: Path, family: str) -> None:
    """New ids follow the ordinary ones; the chat tokens at the end move up, and the model's ids follow."""
    base = pico.save_model(tmp_path / "base", FAMILIES[family](), chat=True)
    extend(base, corpus, tmp_path / "new", num_tokens=40, layout="before")
    old, new = Vocabulary.in_folder(base), Vocabulary.in_folder(tmp_path / "new")
    last = max(old.ordinary.values())
    assert {token: new.all_ids[token] for token in old.ordinary} == old.ordinary
    assert [token.id for token in new.added.values()] == [t.id + 40 * (t.id > last) for t in old.added.values()]
    assert sorted(new.all_ids.values()) == list(range(old.size + 40))
    loaded = AutoTokenizer.from_pretrained(tmp_path / "new")
    assert loaded.convert_tokens_to_ids("<|end|>") == new.added["<|end|>"].id
    step = {"op": "swap_vocabulary", "tokenizer": str(tmp_path / "new")}
    folder = pico.run_recipe(tmp_path / "run", {"instruct": base}, [step])
    for role in (reference.INPUT, reference.OUTPUT):
        before, after = reference.weights(base)[role], reference.weights(folder)[role]
        for content, token in old.added.items():
            assert reference.same_bits(after[new.added[content].id], before[token.id])


GPT_2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
BYTES = {**GPT_2, "use_regex": False}
SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
PRE_TOKENIZERS = {
    "GPT-2": [GPT_2],
    "GPT-2 with a space before": [{**GPT_2, "add_prefix_space": True}],
    "SmolLM2": [{"type": "Digits", "individual_digits": True}, GPT_2],
    **{pattern: [{**SPLIT, "pattern": {"Regex": pattern}}, BYTES] for pattern in SPLITS_BEFORE_SPACES},
    "across spaces": [{**SPLIT, "pattern": {"Regex": "[a-z] [a-z]|."}}, BYTES],
    "no split": [BYTES],
}


@pytest.mark.parametrize("members", PRE_TOKENIZERS.values(), ids=PRE_TOKENIZERS)
@settings(max_examples=40, deadline=None)
@given(texts=st.lists(st.text(st.sampled_from("ab'sб1½,.\u0301 \xa0\n\r\t\x1c\u200b   "), max_size=30), max_size=8))
def test_words_are_those_of_each_whole_text(byte_level, members: list[dict], texts: list[str]) -> None:
    vocabulary = Vocabulary({**byte_level.spec, "pre_tokenizer": {"type": "Sequence", "pretokenizers": members}})
    split = vocabulary.tokenizer.pre_tokenizer.pre_tokenize_str
    assert count_words(texts, vocabulary) == Counter(word for text in texts for word, _ in split(text))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(value=st.dictionaries(st.text(), JSON, max_size=3))
def test_files_are_written_as_json_writes_them(value: dict) -> None:
    assert to_json(value) == (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def test_a_plain_folder_is_extended_without_torch_and_transformers(tmp_path: Path, corpus: Path) -> None:
    base = tmp_path / "base"
    pico.save_tokenizer(pico.byte_level(pico.ENGLISH, 330), base)
    command = ["tokenizer", "extend", str(base), str(corpus), "--add", "20", "-o", str(tmp_path / "new")]
    program = (
        "import sys\nfrom lepmerge.commands.main import main\n"
        f"try:\n    main({command!r})\nexcept SystemExit as end:\n    print(end.code)\n"
        "print(sorted({'torch', 'transformers', 'numpy'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == ["0", "[]"], done.stderr


@pytest.mark.parametrize("scripts", [(), ("Cyrillic",), ("Han", "Hiragana"), ("Georgian",), ("Gothic",)])
def test_beginnings_of_characters_are_those_of_no_other_script(scripts: tuple[str, ...]) -> None:
    """Every beginning of a character of planes 0 and 1, against sets of all of them."""
    inside, outside = set(), set()
    patterns = [regex.compile(rf"\p{{Script={script}}}") for script in scripts]
    for code in (*range(0x800, 0xD800), *range(0xE000, 0x20000)):
        data, is_assigned = chr(code).encode(), unicodedata.category(chr(code)) != "Cn"
        if is_assigned:
            is_inside = not scripts or any(pattern.match(chr(code)) for pattern in patterns)
            (inside if is_inside else outside).update(data[:length] for length in range(2, len(data)))
    allowed = allowed_tokens(scripts)
    candidates = {bytes([a, b]) for a in range(0xC0, 256) for b in range(256)} | inside | outside
    candidates |= {data + b"\x80" for data in candidates}
    for data in candidates:
        try:
            data.decode()
        except UnicodeDecodeError:
            assert allowed(data) == (data in inside - outside), data
