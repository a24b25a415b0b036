"""Warnings, tokenizer reports and estimates are checked value by value: a changed number fails a test."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pico
import pytest
import torch
import training
from tokenizers import Regex, Tokenizer, pre_tokenizers

from lepmerge.comparison.broken_tokens import check_tokens
from lepmerge.comparison.loading import LanguageModel, load_model
from lepmerge.comparison.texts import Predicted, text_of
from lepmerge.corpus import Corpus
from lepmerge.errors import VocabularyError
from lepmerge.models.table_report import TableReport
from lepmerge.tokenization.build import Extend, Optimize, Train, build_tokenizer
from lepmerge.tokenization.checks import NUM_RANDOM_TEXTS, check_digits, check_reachable
from lepmerge.tokenization.report import num_lost_in
from lepmerge.training.fitting import Choice, Fitting, sizes_of
from lepmerge.training.loss import chunk_length
from lepmerge.training.memory import PROCESS_BYTES
from lepmerge.vocabulary.token_names import generic_config
from lepmerge.vocabulary.vocabulary import Vocabulary


def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    return Vocabulary(json.loads(tokenizer.to_str()))


def test_digits_that_split_differently_are_refused() -> None:
    plain, joined = (vocabulary(pico.byte_level([text], 265)) for text in ("a b", "12 12 12 1212"))
    assert check_digits(plain, plain) == 44
    with pytest.raises(VocabularyError, match="splits digits differently, e.g. '13841287201'"):
        check_digits(plain, joined)
    assert check_digits(joined, joined) == 44


def test_unreachable_tokens_are_counted() -> None:
    """`abc` is made of ab and c, but in abc the merge of b and c comes first."""
    tokenizer = pico.bpe_of([("b", "c"), ("a", "b"), ("ab", "c")], letters=pico.alphabet())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found = vocabulary(tokenizer)
    assert num_lost_in(found) == 1
    reached = [found.model_ids[token] for token in ("ab", "bc")]
    assert check_reachable(found, reached) == 0
    with pytest.raises(VocabularyError, match=r"1 new tokens are unreachable: .* b'abc' \(id \d+\)"):
        check_reachable(found, [*reached, found.model_ids["abc"]])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pico.save_model(tmp_path_factory.mktemp("base"), pico.byte_level(pico.ENGLISH, 330), chat=True)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real Russian prose in 480 rows."""
    path = tmp_path_factory.mktemp("corpus") / "ru.jsonl"
    prose = (Path(__file__).parent.parent / "recipes/quickstart/heldout_ru.txt").read_text(encoding="utf-8")
    texts = [None, "", *(prose[start : start + 80].strip() for start in range(0, 480 * 80, 80))]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.mark.parametrize("command", ["extend", "optimize", "bpe"])
def test_every_value_of_a_tokenizers_report(tmp_path: Path, base: Path, corpus: Path, command: str) -> None:
    old, output = Vocabulary.in_folder(base), tmp_path / "new"
    inputs = {"model": str(base), "corpus": Corpus([str(corpus)])}
    if command == "extend":
        report = build_tokenizer(Extend(**inputs, num_tokens=30, scripts=["Cyrillic"]), output)
        expected = {"operation": "extend", "num_tokens": 30, "vocab_size": None, "scripts": ["Cyrillic"]}
        expected |= {"only_from": None, "layout": "after"}
    elif command == "optimize":
        report = build_tokenizer(Optimize(**inputs, keep=0.98, vocab_size=350), output)
        id_map = json.loads((output / "id_map.json").read_text())
        expected = {"operation": "optimize", "keep": 0.98, "vocab_size": 350, "scripts": (), "kept": len(id_map)}
    else:
        report = build_tokenizer(Train(**inputs, kind="bpe", vocab_size=400), output)
        expected = {"operation": "train", "kind": command, "vocab_size": 400}
    expected["model"] = str(base)
    assert json.loads(json.dumps(report)) == json.loads((output / "lepmerge_tokenizer.json").read_text())
    new = Vocabulary.in_folder(output)
    texts = [text for text in map(_text, corpus.read_text().splitlines()) if text]
    expected["corpus"] = {"documents": 480, "texts": 480, "skipped": {"empty": 1, "null": 1}}
    expected |= {"old_size": old.size, "size": new.size}
    if command in ("extend", "optimize"):
        words = [word for text in texts for word, _ in old.tokenizer.pre_tokenizer.pre_tokenize_str(text)]
        expected["words"] = {"different": len(set(words)), "total": len(words)}
    sample = texts[::97]
    symbols = {name: _symbols_per_token(v, sample) for name, v in (("old", old), ("new", new))}
    expected["symbols_per_token"] = pytest.approx(symbols)
    checks = report.pop("checks")
    assert report == expected
    assert checks["new_tokens"] == len(set(new.all_ids) - set(old.all_ids)) > 0
    assert checks["unreachable"] == _unreachable(new) == 0
    exact = [_comes_back(new, text) for text in sample]
    assert checks["round_trip"]["sampled"] == {"texts": len(sample), "exact": sum(exact)} and all(exact)
    assert checks["round_trip"]["random"] == dict.fromkeys(("texts", "exact"), NUM_RANDOM_TEXTS)
    assert checks.get("digits", 44) == 44 and ("digits" in checks) == (command != "bpe")


def test_a_new_tokenizer_counts_what_it_never_reaches(tmp_path: Path, corpus: Path) -> None:
    """Its model's pre-tokenizer takes the first character of a text apart, so that no longer token is reached alone."""
    tokenizer = pico.byte_level(pico.ENGLISH, 330)
    apart = pre_tokenizers.Split(Regex(r"\A."), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([apart, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    like = pico.save_model(tmp_path / "like", tokenizer)
    inputs = {"model": str(like), "corpus": Corpus([str(corpus)])}
    checks = build_tokenizer(Train(**inputs, kind="bpe", vocab_size=400), tmp_path / "new")["checks"]
    assert checks["unreachable"] == _unreachable(Vocabulary.in_folder(tmp_path / "new")) > 50
    with pytest.raises(VocabularyError, match="new tokens are unreachable"):
        build_tokenizer(Extend(**inputs, num_tokens=20), tmp_path / "extended")


def _text(line: str) -> str | None:
    return json.loads(line)["text"]


def _ids(vocabulary: Vocabulary, text: str) -> list[int]:
    return vocabulary.tokenizer.encode(text, add_special_tokens=False).ids


def _symbols_per_token(vocabulary: Vocabulary, texts: Sequence[str]) -> float:
    return sum(map(len, texts)) / sum(len(_ids(vocabulary, text)) for text in texts)


def _comes_back(vocabulary: Vocabulary, text: str) -> bool:
    return vocabulary.tokenizer.decode(_ids(vocabulary, text), skip_special_tokens=False) == text


def _unreachable(vocabulary: Vocabulary) -> int:
    """Count the ordinary tokens of whole characters, bytes excluded, that the tokenizer does not make of their text."""
    lost = 0
    for token, id in vocabulary.ordinary.items():
        text = vocabulary.bytes_of[id].decode(errors="surrogateescape")
        is_byte = token.startswith("<0x") and len(token) == 6
        lost += text.isprintable() and not is_byte and _ids(vocabulary, text) != [id]
    return lost


def test_warnings_of_inexact_tokens(tmp_path: Path) -> None:
    """The old vocabulary has no byte D0: two tokens with it keep only their other bytes."""
    report = TableReport(
        "arithmetic",
        "output_embeddings",
        {"exact": 9, "inexact": 0},
        operands={"base": {"inexact": 3}, "other": {"exact": 4}, "third": {"inexact": 1}},
        warnings=("something else",),
    )
    assert report.all_warnings() == [
        "output_embeddings: something else",
        "output_embeddings: 3 tokens hold bytes that the old vocabulary of base cannot spell in full",
        "output_embeddings: 1 tokens hold bytes that the old vocabulary of third cannot spell in full",
    ]
    letters = [letter for letter in pico.alphabet() if letter != "Ð"]
    old, new = pico.bpe_of([], letters=letters), pico.bpe_of([("Ð", "¼"), ("a", "Ð¼")], letters=pico.alphabet())
    for tokenizer in (old, new):
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.add_special_tokens(list(pico.SPECIAL))
    pico.save_model(tmp_path / "old", old)
    pico.save_tokenizer(new, tmp_path / "new")
    step = {"op": "swap_vocabulary", "tokenizer": str(tmp_path / "new")}
    out = pico.run_recipe(tmp_path / "run", {"instruct": tmp_path / "old"}, [step])
    warnings = [
        f"{table}: 2 tokens hold bytes that the old vocabulary cannot spell in full"
        for table in ("input_embeddings", "output_embeddings")
    ]
    assert json.loads((out / "lepmerge_report.json").read_text())["notes"] == warnings
    assert "## Notes\n\n" + "\n".join(f"- {warning}" for warning in warnings) in (out / "README.md").read_text()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, english: Tokenizer, russian: Tokenizer) -> list[LanguageModel]:
    """A reference with the old vocabulary and a model with the new one; their weights are never loaded."""
    folder = tmp_path_factory.mktemp("pair")
    made = {"reference": english, "model": russian}
    return [load_model(pico.save_model(folder / name, tokenizer)) for name, tokenizer in made.items()]


def predicted(model: LanguageModel, extra: dict[int, float]) -> dict[str, Predicted]:
    """Return a text as predicted at one bit per byte, plus the extra bits of some tokens (id → bits)."""
    pieces = [text for text in pico.RUSSIAN for _ in range(8)]
    vocabulary, ids = model.vocabulary, [tuple(row) for row in model.encode(pieces)]
    lengths = [np.array([len(vocabulary.bytes_of[id]) for id in row]) for row in ids]
    bits = [size + np.array([extra.get(id, 0.0) for id in row]) for row, size in zip(ids, lengths, strict=True)]
    ends = tuple(np.cumsum(size) for size in lengths)
    return {"ru": Predicted(text_of("ru", pieces), tuple(ids), tuple(bits), ends)}


def test_warnings_of_untrained_and_broken_rows(pair: list[LanguageModel]) -> None:
    reference, model = pair
    judged = (reference.name, reference.vocabulary)
    expected = predicted(reference, {})
    old = set(reference.vocabulary.bytes_of.values())
    used = sorted({id for row in predicted(model, {})["ru"].ids for id in row})
    new = [id for id in used if model.vocabulary.bytes_of[id] not in old]
    sound = check_tokens(model, predicted(model, {}), expected, *judged)
    assert sound["warnings"] == [] and sound["written"]["suspects"] == [] == sound["read"]["suspects"]
    count = sum(data not in old for data in model.vocabulary.bytes_of.values())
    assert sound["new_tokens"] == count and sound["written"]["judged_new"] == len(new) >= 20
    assert sound["written"]["judged"] == len(used)
    assert sound["written"]["median_excess_bits"] == pytest.approx(0, abs=1e-9)
    untrained = check_tokens(model, predicted(model, dict.fromkeys(new, 6.0)), expected, *judged)
    assert untrained["written"]["median_excess_bits_new"] > 1.5
    assert untrained["warnings"][0] == (
        f"model: the new tokens are {untrained['written']['median_excess_bits_new']:.1f} bits less probable than under "
        "reference (median): their output rows are not trained, or not for this model"
    )
    counts = Counter(id for row in predicted(model, {})["ru"].ids for id in row)
    broken = [*new[:6], next(id for id in used if id not in new and counts[id] >= 3)]
    found = check_tokens(model, predicted(model, dict.fromkeys(broken, 60.0)), expected, *judged)
    suspects = found["written"]["suspects"]
    assert {suspect["id"] for suspect in suspects} >= set(broken)
    assert all(suspect["new"] == (suspect["id"] in new) for suspect in suspects)
    assert all(suspect["text"].encode() == model.vocabulary.bytes_of[suspect["id"]] for suspect in suspects[:3])
    (warning,) = [line for line in found["warnings"] if "output table" in line]
    named = ", ".join(f"{suspect['text']!r} (+{suspect['excess_bits']:.0f})" for suspect in suspects[:8])
    num_new = sum(suspect["new"] for suspect in suspects)
    assert 6 <= num_new < len(suspects)
    assert warning == (
        f"model: {len(suspects)} tokens ({num_new} of them new) of {len(used)} look broken in the output table: they "
        f"are over 4 bits less probable than under reference: {named}" + ", …" * (len(suspects) > 8)
    )


def test_the_memory_that_a_training_is_estimated_to_need(tmp_path: Path, english: Tokenizer) -> None:
    """Two layers of width 16 and 32: each keeps 10 · 16 + 3.5 · 32 values per token, and 4 · 16 lie outside them."""
    setting = training.setting_of(training.write_setting(tmp_path, english))
    device, sizes = torch.device("cpu"), sizes_of(setting)
    rows, old, tokens = setting.start.num_rows, setting.base.num_rows, 2 * 48
    layer = 4 * 16 * 16 + 3 * 16 * 32 + 2 * 16
    assert (sizes.body, sizes.layer, sizes.layers, sizes.largest) == (2 * layer + 16, layer, 2, 512)
    fitting = Fitting(setting, sizes, device)
    assert fitting.chosen == Choice(2, False, "fp32")
    parts = fitting.parts(fitting.chosen)
    assert parts == {
        "process": PROCESS_BYTES["cpu"] + setting.base.vocabulary.num_bytes + setting.start.vocabulary.num_bytes,
        "body": 4 * (2 * layer + 16),
        "tables": 4 * 2 * rows * 16,
        "masters": 0,
        "gradients": 4 * 2 * rows * 16,
        "optimizer": 8 * 2 * rows * 16,
        "activations": 4 * tokens * (2 * (10 * 16 + 3.5 * 32) + 4 * 16),
        "dequantized": 0,
        "logits": 2 * 4 * min(chunk_length(rows, device, 4), tokens) * rows,
        "lora": 0,
        "loading": 0,
    }
    assert old < rows
    saving = training.setting_of(tmp_path / "config.yaml", "activation_checkpointing=true", "precision=bf16")
    less = Fitting(saving, sizes, device).parts(Choice(2, True, "bf16"))
    assert less["activations"] == 2 * tokens * (2 * 16 + 10 * 16 + 3.5 * 32 + 4 * 16)
    assert less["masters"] == 4 * 2 * rows * 16
    assert less["body"] == parts["body"] / 2 and less["tables"] == parts["tables"] / 2
    quantized = Fitting(saving, sizes, device).parts(Choice(2, False, "nf4"))
    assert quantized["body"] == int(2 * (layer - 2 * 16) * 0.516 + 2 * (5 * 16)) and quantized["dequantized"] == 2 * 512


def test_settings_of_slow_tokenizers_are_left_out() -> None:
    """A generic fast class would take them as its own, or look for files that are not there."""
    slow = {
        "auto_map": {"AutoTokenizer": ["a.B", None]}, "sp_model_kwargs": {}, "legacy": False, "vocab_file": "v",
        "spaces_between_special_tokens": False, "tokenizer_file": "t", "merges_file": "m", "from_slow": True,
        "backend": "tokenizers", "is_local": True, "local_files_only": False, "add_prefix_space": True,
        "add_bos_token": True, "add_eos_token": False, "split_special_tokens": False, "fix_mistral_regex": True,
        "model_specific_special_tokens": {},
    }  # fmt: skip
    kept = {"model_max_length": 512, "padding_side": "left", "chat_template": "{{ messages }}"}
    names = {"bos_token": "<s>", "eos_token": "<gone>", "additional_special_tokens": ["<x>", "<gone>"]}
    entry = {"id": 0, "content": "<s>", "special": True}
    spec = {"added_tokens": [entry, {"id": 1, "content": "<x>", "special": True}]}
    found = generic_config({**slow, **kept, **names, "extra_special_tokens": ["<x>"]}, names, spec)
    assert found == {
        **kept,
        "bos_token": "<s>",
        "additional_special_tokens": ["<x>"],
        "added_tokens_decoder": {
            "0": {"content": "<s>", "special": True},
            "1": {"content": "<x>", "special": True},
        },
        "model_input_names": ["input_ids", "attention_mask"],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
