"""The union of vocabularies: rows by bytes, ids, reachable tokens and the template, through the command line."""

import json
from pathlib import Path
from typing import Any

import pico
import pytest
import reference
import torch
import yaml
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from lepmerge.vocabulary.union import united
from lepmerge.vocabulary.vocabulary import Vocabulary

GERMAN = [
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich, und die Straße ist nass.",
    "Ein Modell ist eine Abbildung von Namen auf Tensoren; das Tier springt über den Zaun.",
]
TABLES = ("model.embed_tokens.weight", "lm_head.weight")
MAKERS = {"byte_level": pico.byte_level, "sentencepiece": pico.sentencepiece}


def save(folder: Path, name: str, texts: list[str], make=pico.byte_level, **options) -> Path:
    return pico.save_model(folder / name, make([*texts, *pico.ENGLISH], 560), **options)


@pytest.fixture(scope="module", params=MAKERS)
def models(request, tmp_path_factory) -> dict[str, Path]:
    """A Russian and a German model, whose vocabularies differ, and their English base."""
    folder, make = tmp_path_factory.mktemp(request.param), MAKERS[request.param]
    russian = save(folder, "russian", pico.RUSSIAN, make, chat=True, seed=1)
    german = save(folder, "german", GERMAN, make, chat=True, seed=2, extra=["<|tool|>"], num_rows=600)
    return {"base": save(folder, "base", [], make), "russian": russian, "german": german}


def run(folder: Path, models: dict[str, Path], step: dict[str, Any], **output) -> Path:
    done = pico.command("run", recipe(folder, models, step, **output), "--device", "cpu")
    assert done.exit_code == 0, done.stderr
    return folder / "out"


def recipe(folder: Path, models: dict[str, Path], step: dict[str, Any], **output) -> Path:
    folder.mkdir(exist_ok=True)
    plain = {
        "models": {name: str(path) for name, path in models.items()},
        "start": "russian",
        "steps": [step],
        "output": {"path": "out", **output},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(plain, sort_keys=False))
    return folder / "recipe.yaml"


Key = tuple[str, bytes | str]


def ids_by_key(folder: Path) -> dict[Key, int]:
    """Return (kind, bytes or content) → id of every token."""
    tokens = reference.tokens_in(folder)
    found: dict[Key, int] = {("added", content): id for content, id in tokens.added.items()}
    for id, token in tokens.strings.items():
        found["byte" if tokens.is_byte_token(token) else "text", tokens.bytes[id]] = id
    return found


def lost_in(out: Path) -> set[int]:
    """Return the ids of tokens that the tokenizer does not make of their own bytes."""
    tokens = reference.Tokens(out)
    texts = {id: data for id, data in tokens.bytes.items() if not tokens.is_byte_token(tokens.strings[id])}
    return {id for id, data in texts.items() if tokens.encoded(data) != [id]}


def test_two_adapted_models_are_merged_over_the_union_of_their_vocabularies(tmp_path: Path, models) -> None:
    weights = {"russian": {"weight": 0.25}, "german": {"weight": 0.75}}
    step = {"op": "merge", "method": "linear", "models": weights, "tokenizer": "union"}
    out = run(tmp_path, models, step, chat_template="german")
    russian, german, both = (ids_by_key(folder) for folder in (models["russian"], models["german"], out))
    assert both.keys() == russian.keys() | german.keys()
    assert {key: both[key] for key in russian} == russian
    first, second, got = (reference.weights(folder) for folder in (models["russian"], models["german"], out))
    for table in TABLES:
        for key, id in both.items():
            if key in russian and key in german:
                row = 0.25 * first[table][russian[key]].float() + 0.75 * second[table][german[key]].float()
                assert reference.same_bits(got[table][id], row.to(torch.bfloat16)), key
            else:
                own = second[table][german[key]] if key in german else first[table][russian[key]]
                assert reference.same_bits(got[table][id], own), key
    loaded, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert loaded.config.vocab_size == len(both) == len(tokenizer) == len(got[TABLES[0]])
    assert tokenizer.get_vocab() == reference.tokens_in(out).encoder.get_vocab() | reference.tokens_in(out).added
    assert (
        tokenizer.chat_template == pico.CHAT_TEMPLATE and tokenizer.encode("<|tool|>")[-1] == both["added", "<|tool|>"]
    )
    for text in (*pico.RUSSIAN, *GERMAN):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == text
        assert max(ids) >= len(russian) if text in GERMAN else len(ids) < len(text) / 2
    report = json.loads((out / "lepmerge_report.json").read_text())
    counts = report["tables"][-1]
    shared = len(russian.keys() & german.keys())
    assert counts["rows"] == {"merged": shared, "kept": len(both) - shared}
    assert counts["operands"]["german"] == {"own": len(german), "taken": len(both) - len(german)}
    lost = lost_in(out) - set(russian.values())
    assert len(lost) <= 2 and len(report["notes"]) == bool(lost)
    assert not lost or f"{len(lost)} tokens of german have rows, but no merges" in report["notes"][0]


def test_tokens_may_have_a_source(tmp_path: Path, models) -> None:
    """A forced row is the source's; a model without the token takes the row of the base, or of the named source."""
    tokens = {"<|user|>": {"source": "german", "force": True}, "<|end|>": {"source": "german"}}
    weights = {"russian": {"weight": 1}, "german": {"weight": 0.5}}
    step = {"op": "merge", "method": "task_arithmetic", "base": "base", "models": weights, "tokenizer": "union"}
    out = run(tmp_path, models, {**step, "tokens": tokens})
    folders = (models["russian"], models["german"], models["base"])
    ids = [ids_by_key(folder) for folder in (*folders, out)]
    rows = [
        reference.weights(folder)[TABLES[0]].float()
        for folder in (models["russian"], models["german"], models["base"], out)
    ]

    def row(of: int, content: str) -> torch.Tensor:
        return rows[of][ids[of]["added", content]]

    assert torch.equal(row(3, "<|user|>"), row(1, "<|user|>"))
    delta = row(0, "<|end|>") - row(1, "<|end|>")
    assert torch.equal(row(3, "<|end|>"), (row(1, "<|end|>") + delta).bfloat16().float())
    delta = 0.5 * (row(1, "<|assistant|>") - row(0, "<|assistant|>"))
    assert torch.equal(row(3, "<|assistant|>"), (row(0, "<|assistant|>") + delta).bfloat16().float())
    assert torch.equal(row(3, "<|tool|>"), row(1, "<|tool|>"))


def test_the_operation_alone_keeps_every_row_and_adds_the_others(tmp_path: Path, models) -> None:
    step = {
        "op": "unite_vocabularies",
        "models": ["german"],
        "tokens": {"<|end|>": {"source": "german", "force": True}},
    }
    out = run(tmp_path, models, step)
    russian, german, both = (ids_by_key(folder) for folder in (models["russian"], models["german"], out))
    first, second, got = (reference.weights(folder) for folder in (models["russian"], models["german"], out))
    for table in TABLES:
        for key, id in both.items():
            own = first[table][id] if key in russian and key[1] != "<|end|>" else second[table][german[key]]
            assert reference.same_bits(got[table][id], own), key
    (table, _) = json.loads((out / "lepmerge_report.json").read_text())["tables"]
    assert table["rows"] == {"current": len(russian) - 1, "from_german": len(both) - len(russian) + 1}
    body = [name for name in got if name not in TABLES]
    assert all(reference.same_bits(got[name], first[name]) for name in body)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize(
    ("first", "second"), [(pico.ENGLISH, GERMAN), (GERMAN, pico.RUSSIAN), ([*GERMAN, *pico.RUSSIAN], pico.ENGLISH)]
)
def test_new_tokens_are_reached_and_old_ones_stay(make, first: list[str], second: list[str]) -> None:
    one, two = (Vocabulary(json.loads(make([*t, *pico.ENGLISH[:1]], 600).to_str())) for t in (first, second))
    both, lost = united(one, two, names=("one", "two"))
    new = {token: both.ordinary[token] for token in both.ordinary if token not in one.ordinary}
    assert new.keys() == {t for t in two.ordinary if t not in one.ordinary} and len(new) > 10
    assert len(lost) <= len(new) / 10
    assert {t for t, id in new.items() if both.encode([both.bytes_of[id]]) != [[id]]} == set(lost)
    for token, id in one.ordinary.items():
        if one.encode([one.bytes_of[id]]) == [[id]] and not one.is_byte_token(token):
            assert both.ordinary[token] == id and both.encode([one.bytes_of[id]]) == [[id]], token


def other_pre_tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    digits = pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.pre_tokenizer = digits
    return tokenizer


UNION = {"op": "merge", "method": "linear", "models": {"russian": {}, "german": {}}, "tokenizer": "union"}
OTHERS = {
    "split": lambda: other_pre_tokenizer(pico.byte_level(GERMAN, 500)),
    "pieces": lambda: pico.sentencepiece(GERMAN, 500),
    "scores": lambda: pico.unigram(GERMAN, 200),
}


@pytest.mark.parametrize(
    ("german", "more", "parts"),
    [
        ("split", {}, ["german", "differ in pre_tokenizer", "swap_vocabulary"]),
        ("pieces", {}, ["german is a BPE (sentencepiece)", "russian is a BPE (byte_level)"]),
        ("scores", {}, ["german is a Unigram", "only BPEs"]),
        ("base", {"tokens": {"<|usr|>": {"source": "german"}}}, ["no model has the token '<|usr|>'", "mean <|user|>?"]),
        ("base", {"tokens": {"<s>": {"source": "base"}}}, ["tokens.<s>.source", "not among", "russian, german"]),
        ("base", {"tokens": {"<s>": {"source": "bas"}}}, ["tokens.<s>.source", "did you mean base?"]),
        ("base", {"tokens": {"<|user|>": {"source": "german"}}}, ["tokens.<|user|>.source", "german lacks this token"]),
        ("base", {"tokens": {"<s>": {"source": "german"}}, "tokenizer": None}, ["need `tokenizer: union`"]),
        ("base", {"tokenizer": "unoin"}, ["steps.0.tokenizer", "'union'"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_united_is_one_line_at_plan_time(tmp_path: Path, setting, german: str, more, parts) -> None:
    folders = {"base": setting["base"], "russian": setting["instruct"], "german": setting["base"]}
    if german != "base":
        folders["german"] = pico.save_model(tmp_path / "german", OTHERS[german]())
    done = pico.command("plan", recipe(tmp_path / "run", folders, {**UNION, **more}))
    assert done.exit_code in (1, 2)
    pico.assert_one_line_error(done, done.exit_code, *parts)
