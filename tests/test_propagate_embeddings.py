"""propagate_embeddings equals an independent float64 reference within one rounding, through whole recipes."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pico
import pytest
import reference
import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer

from lepmerge.errors import CheckpointError, VocabularyError

METHODS = ("swap", "overlap", "conversion", "delta")


@dataclass
class Case:
    """What differs between the models of one LEP setting; old and new name tokenizer families."""

    old: str = "byte_level"
    new: str = "byte_level"
    base: dict = field(default_factory=dict)
    instruct: dict = field(default_factory=dict)
    adapted: dict = field(default_factory=dict)
    both: dict = field(default_factory=dict)


CASES = {
    "untied": Case(),
    "tied": Case(both={"tied": True}),
    "padded": Case(base={"num_rows": 448}, instruct={"num_rows": 448}, adapted={"num_rows": 640}),
    "instruct_padded": Case(instruct={"num_rows": 512}),
    "adapted_padded_less_than_chat": Case(adapted={"num_rows": 572}),
    "added_in_other_order": Case(
        base={"extra": ("<|b|>", "<|a|>")},
        instruct={"extra": ("<|x|>", "<|b|>")},
        adapted={"extra": ("<|end|>", "<|new|>", "<|b|>", "<|user|>")},
    ),
    "base_has_chat_tokens": Case(base={"chat": True}),
    "to_sentencepiece": Case(new="sentencepiece"),
    "from_sentencepiece": Case(old="sentencepiece"),
    "within_sentencepiece": Case(old="sentencepiece", new="sentencepiece"),
    "few_rows": Case(both={"width": 128}),
    "fewer_rows_than_width": Case(both={"width": 512}),
    "float16": Case(both={"dtype": torch.float16}),
    "float32": Case(both={"dtype": torch.float32}),
}


def build(folder: Path, case: Case, *, seed: int = 0) -> dict[str, Path]:
    """Save the three models of a case."""
    mixed = [*pico.RUSSIAN, *pico.ENGLISH]
    old = getattr(pico, case.old)(pico.ENGLISH, 400 if case.old == "byte_level" else 420)
    new = getattr(pico, case.new)(mixed, 600)
    base = pico.save_model(folder / "base", old, seed=seed, **case.both, **case.base)
    instruct = pico.save_instruct(folder / "instruct", base, old, seed=seed + 1, **case.both, **case.instruct)
    adapted = pico.save_adapted(folder / "adapted", base, new, seed=seed + 2, **case.adapted)
    return {"base": base, "instruct": instruct, "adapted": adapted}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory):
    """Return a function: name of a case → its models, saved once."""
    built: dict[str, dict[str, Path]] = {}

    def get(name: str) -> dict[str, Path]:
        if name not in built:
            built[name] = build(tmp_path_factory.mktemp(name), CASES[name])
        return built[name]

    return get


def step(method: object, **more: object) -> dict:
    return {"op": "propagate_embeddings", "base": "base", "adapted": "adapted", "method": method, **more}


def metrics_of(out: Path) -> list[dict]:
    """Return the metrics of each table in the report."""
    return [table["metrics"] for table in tables_of(out)]


def tables_of(out: Path) -> list[dict]:
    return json.loads((out / "lepmerge_report.json").read_text())["tables"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CASES)
def test_equals_the_reference(tmp_path: Path, models, name: str, method: str) -> None:
    folders = models(name)
    out = pico.run_recipe(tmp_path, folders, [step(method)])
    got = reference.weights(out)
    tied = CASES[name].both.get("tied", False)
    assert (reference.OUTPUT in got) is not tied
    for number, role in enumerate([reference.INPUT] if tied else [reference.INPUT, reference.OUTPUT]):
        expected = reference.propagated(folders, method, role=role)
        reference.assert_matches(got[role], expected)
        if method in ("overlap", "conversion"):
            metrics = metrics_of(out)[number]
            assert metrics["rows_fitted"] == expected.num_fitted
            width = got[role].shape[1]
            assert metrics["solver"] == ("gram" if expected.num_fitted >= 4 * width else "qr")
    config = json.loads((out / "config.json").read_text())
    assert config["vocab_size"] == len(got[reference.INPUT])
    assert bool(config["tie_word_embeddings"]) is tied
    instruct = reference.weights(folders["instruct"])
    for tensor in set(got) - {reference.INPUT, reference.OUTPUT}:
        assert reference.same_bits(got[tensor], instruct[tensor])


def test_the_cases_meet_both_solvers_and_too_few_rows(tmp_path: Path, models) -> None:
    few_rows = pico.run_recipe(tmp_path / "few", models("few_rows"), [step("overlap")])
    fewer_rows = pico.run_recipe(tmp_path / "fewer", models("fewer_rows_than_width"), [step("overlap")])
    few, fewer = metrics_of(few_rows)[0], metrics_of(fewer_rows)[0]
    assert 128 <= few["rows_fitted"] < 4 * 128 and few["rank"] == 128
    assert fewer["rows_fitted"] < 512 and fewer["rank"] == fewer["rows_fitted"]
    assert not any("warnings" in table for table in tables_of(few_rows))
    warning = f"only {fewer['rows_fitted']} rows for width 512; overlap and conversion need about 1536"
    assert tables_of(fewer_rows)[0]["warnings"] == [warning]


@pytest.mark.parametrize("seed", [10, 20])
@pytest.mark.parametrize(("old", "new"), [("byte_level", "sentencepiece"), ("sentencepiece", "byte_level")])
def test_between_families_with_other_weights(tmp_path: Path, old: str, new: str, seed: int) -> None:
    folders = build(tmp_path, Case(old=old, new=new, both={"width": 24}), seed=seed)
    for method in ("conversion", "delta"):
        out = pico.run_recipe(tmp_path / method, folders, [step(method)])
        reference.assert_matches(reference.weights(out)[reference.INPUT], reference.propagated(folders, method))


@pytest.mark.parametrize("name", ["untied", "padded", "within_sentencepiece", "added_in_other_order"])
@pytest.mark.parametrize("method", METHODS)
def test_keep_shared_rows(tmp_path: Path, models, name: str, method: str) -> None:
    folders = models(name)
    out = pico.run_recipe(tmp_path, folders, [step(method, keep_shared_rows=True)])
    expected = reference.propagated(folders, method, keep_shared_rows=True)
    assert len(expected.copies) > 250
    reference.assert_matches(reference.weights(out)[reference.INPUT], expected)


def test_method_for_each_table(tmp_path: Path, models) -> None:
    folders = models("untied")
    out = pico.run_recipe(tmp_path, folders, [step({"input": "delta", "output": "overlap"})])
    got = reference.weights(out)
    reference.assert_matches(got[reference.INPUT], reference.propagated(folders, "delta"))
    reference.assert_matches(got[reference.OUTPUT], reference.propagated(folders, "overlap", role=reference.OUTPUT))


@pytest.mark.parametrize("name", ["untied", "padded", "added_in_other_order"])
def test_added_tokens_keep_their_ids_and_rows(tmp_path: Path, models, name: str) -> None:
    folders = models(name)
    out = pico.run_recipe(tmp_path, folders, [step("conversion")])
    loaded, instruct = AutoTokenizer.from_pretrained(out), AutoTokenizer.from_pretrained(folders["instruct"])
    adapted = AutoTokenizer.from_pretrained(folders["adapted"])
    got, old = reference.weights(out), reference.weights(folders["instruct"])
    for content, id in instruct.added_tokens_encoder.items():
        new_id = loaded.convert_tokens_to_ids(content)
        assert loaded.encode(content) == [new_id]
        for role in (reference.INPUT, reference.OUTPUT):
            assert reference.same_bits(got[role][new_id], old[role][id])
    for text in (*pico.RUSSIAN, *pico.ENGLISH):
        assert loaded.encode(text) == adapted.encode(text)
    appended = [token for token in instruct.added_tokens_encoder if token not in adapted.get_vocab()]
    appended.sort(key=instruct.convert_tokens_to_ids)
    assert [loaded.convert_tokens_to_ids(token) for token in appended] == list(
        range(len(adapted), len(adapted) + len(appended))
    )


def test_negative_zero_keeps_its_bits(tmp_path: Path, models) -> None:
    folders = dict(models("untied"))
    new, old = reference.Tokens(folders["adapted"]), reference.Tokens(folders["instruct"])
    tensors = reference.weights(folders["instruct"])
    for role in (reference.INPUT, reference.OUTPUT):
        tensors[role][:, ::3] = -0.0
    folders["instruct"] = tmp_path / "instruct"
    folders["instruct"].mkdir()
    for path in models("untied")["instruct"].iterdir():
        (folders["instruct"] / path.name).write_bytes(path.read_bytes())
    save_file(tensors, folders["instruct"] / "model.safetensors", metadata={"format": "pt"})
    out = pico.run_recipe(tmp_path / "run", folders, [step("conversion", keep_shared_rows=True)])
    got = reference.weights(out)[reference.INPUT]
    exact = {id: row.ids[0] for id, row in enumerate(reference.conversion(old, new, len(got))) if row.kind == "exact"}
    assert len(exact) > 250
    for id, old_id in exact.items():
        assert bool(torch.signbit(got[id, ::3]).all())
        assert reference.same_bits(got[id], tensors[reference.INPUT][old_id])


def test_id_holes_in_the_adapted_vocabulary(tmp_path: Path) -> None:
    """Chat tokens follow the highest id, and the tokenizers library gives them the ids of their rows."""
    english = pico.byte_level(pico.ENGLISH, 400)
    russian = pico.with_holes(pico.byte_level([*pico.RUSSIAN, *pico.ENGLISH], 500), first=450, width=9)
    base = pico.save_model(tmp_path / "base", english)
    folders = {"base": base, "instruct": pico.save_instruct(tmp_path / "instruct", base, english)}
    folders["adapted"] = pico.save_adapted(tmp_path / "adapted", base, russian, num_rows=509)
    for method in METHODS:
        out = pico.run_recipe(tmp_path / method, folders, [step(method)])
        got = reference.weights(out)[reference.INPUT]
        reference.assert_matches(got, reference.propagated(folders, method))
        loaded = AutoTokenizer.from_pretrained(out)
        assert [loaded.convert_tokens_to_ids(token) for token in pico.CHAT_TOKENS] == [509, 510, 511]
        assert loaded.encode("<|user|>Модель<|end|>")[0] == 509
        assert got.shape[0] == 512


def test_chat_token_that_is_an_ordinary_token_of_the_adapted_vocabulary(tmp_path: Path) -> None:
    """It keeps the id it has there, becomes an added token, and takes the instruct row."""
    english = pico.byte_level(pico.ENGLISH, 400)
    russian = pico.byte_level([*pico.RUSSIAN, *pico.ENGLISH], 600)
    vocab = json.loads(russian.to_str())["model"]["vocab"]
    token = max(vocab, key=vocab.get)
    vocab = {("<|end|>" if name == token else name): id for name, id in vocab.items()}
    merges = [pair for pair in json.loads(russian.to_str())["model"]["merges"] if "".join(pair) != token]
    russian = pico.edited(russian, model={"vocab": vocab, "merges": merges})
    base = pico.save_model(tmp_path / "base", english)
    folders = {"base": base, "instruct": pico.save_instruct(tmp_path / "instruct", base, english)}
    folders["adapted"] = pico.save_adapted(tmp_path / "adapted", base, russian)
    out = pico.run_recipe(tmp_path / "run", folders, [step("conversion")])
    loaded = AutoTokenizer.from_pretrained(out)
    got, old = reference.weights(out)[reference.INPUT], reference.weights(folders["instruct"])[reference.INPUT]
    end = vocab["<|end|>"]
    assert loaded.encode("<|end|>") == [end] and loaded.eos_token_id == end
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == [end]
    old_end = reference.Tokens(folders["instruct"]).added["<|end|>"]
    assert reference.same_bits(got[end], old[old_end])
    assert got.shape[0] == len(vocab) + 2  # the other two chat tokens


def test_identity_of_the_same_vocabulary(tmp_path: Path, english) -> None:
    """If adapted is the base, conversion and delta give the instruct's rows. If base is instruct, nothing changes."""
    base = pico.save_model(tmp_path / "base", english, dtype=torch.float32)
    folders = {"base": base, "instruct": base, "adapted": base}
    for method in METHODS:
        out = pico.run_recipe(tmp_path / method, folders, [step(method)])
        for name, tensor in reference.weights(base).items():
            assert torch.equal(reference.weights(out)[name], tensor)


def test_delta_of_the_base_is_the_instruct(tmp_path: Path, english) -> None:
    base = pico.save_model(tmp_path / "base", english, dtype=torch.float32)
    instruct = pico.save_instruct(tmp_path / "instruct", base, english, dtype=torch.float32)
    out = pico.run_recipe(tmp_path / "run", {"base": base, "instruct": instruct, "adapted": base}, [step("delta")])
    got, old = reference.weights(out)[reference.INPUT], reference.weights(instruct)[reference.INPUT]
    assert torch.allclose(got, old, rtol=0, atol=1e-8)


def test_models_that_look_mixed_up_are_noted(tmp_path: Path, models) -> None:
    folders = models("untied")
    mixed_up = {
        "has no token that instruct lacks": {**folders, "adapted": folders["base"]},
        "base and instruct are the same folder": {**folders, "base": folders["instruct"]},
    }
    for number, (note, given) in enumerate(mixed_up.items()):
        out = pico.run_recipe(tmp_path / str(number), given, [step("delta")])
        (found,) = json.loads((out / "lepmerge_report.json").read_text())["notes"]
        assert note in found
    sound = pico.run_recipe(tmp_path / "sound", folders, [step("delta")])
    assert json.loads((sound / "lepmerge_report.json").read_text())["notes"] == []


def test_refusals(tmp_path: Path, models) -> None:
    untied, tied = models("untied"), models("tied")
    other = pico.save_model(tmp_path / "other", pico.byte_level(pico.RUSSIAN, 400))
    wide = pico.save_adapted(tmp_path / "wide", models("few_rows")["base"], pico.byte_level(pico.RUSSIAN, 400))
    short = pico.save_adapted(tmp_path / "short", untied["base"], pico.byte_level(pico.RUSSIAN, 400), num_rows=390)
    refused = [
        ({**untied, "base": other}, VocabularyError, "base and instruct should share their vocabulary"),
        ({**untied, "adapted": wide}, CheckpointError, "different widths .*adapted 128"),
        ({**untied, "adapted": short}, VocabularyError, "10 tokens beyond the 390 rows of the tables"),
        ({**tied, "adapted": untied["adapted"]}, CheckpointError, "separate input and output embeddings"),
    ]
    for number, (folders, error, message) in enumerate(refused):
        with pytest.raises(error, match=message):
            pico.run_recipe(tmp_path / str(number), folders, [step("conversion")])
        assert not (tmp_path / str(number) / "out").exists()
