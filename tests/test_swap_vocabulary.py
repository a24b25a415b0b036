"""swap_vocabulary: a new row is the mean of the rows of its old tokens (paper section 2.1.2, eq. 1-2)."""

import json
from pathlib import Path

import pico
import pytest
import reference
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lepmerge.errors import VocabularyError

TABLES = {"input_embeddings": reference.INPUT, "output_embeddings": reference.OUTPUT}


def swapped(tmp_path: Path, model: Path, tokenizer: Path, **output) -> Path:
    step = {"op": "swap_vocabulary", "tokenizer": str(tokenizer)}
    return pico.run_recipe(tmp_path / "run", {"instruct": model}, [step], **output)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory, english, russian) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tokenizers")
    for name, tokenizer in {
        "old": english,
        "new": russian,
        "sentencepiece": pico.sentencepiece([*pico.RUSSIAN, *pico.ENGLISH], 700),
    }.items():
        pico.save_tokenizer(tokenizer, folder / name)
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("new", ["new", "sentencepiece"])
def test_equals_the_reference(tmp_path: Path, english, tokenizers, new: str, tied: bool, dtype) -> None:
    model = pico.save_model(tmp_path / "model", english, tied=tied, dtype=dtype)
    folder = swapped(tmp_path, model, tokenizers[new])
    got = reference.weights(folder)
    for name in [reference.INPUT] if tied else TABLES.values():
        expected = reference.swapped(model, tokenizers[new], role=name)
        wanted = reference.Expected(expected.table_VD[: len(got[name])], expected.copies)
        reference.assert_matches(got[name], wanted)
    body = load_file(model / "model.safetensors")
    assert all(reference.same_bits(got[n], body[n]) for n in body if n not in TABLES.values())


def test_its_own_vocabulary_changes_nothing(tmp_path: Path, english) -> None:
    model = pico.save_model(tmp_path / "model", english)
    got = reference.weights(swapped(tmp_path, model, model))
    assert all(reference.same_bits(got[name], tensor) for name, tensor in reference.weights(model).items())


def test_permuted_ids_permute_the_rows(tmp_path: Path, english) -> None:
    spec = json.loads(english.to_str())
    ordinary = [t for t, id in spec["model"]["vocab"].items() if id not in {e["id"] for e in spec["added_tokens"]}]
    ids = sorted(spec["model"]["vocab"][token] for token in ordinary)
    moved = dict(zip(ordinary, reversed(ids), strict=True))
    vocab = {**spec["model"]["vocab"], **moved}
    model = pico.save_model(tmp_path / "model", english)
    pico.save_tokenizer(pico.edited(english, model={"vocab": vocab}), tmp_path / "permuted")
    got = reference.weights(swapped(tmp_path, model, tmp_path / "permuted"))
    old = reference.weights(model)
    for name in TABLES.values():
        for token, id in moved.items():
            assert torch.equal(got[name][id], old[name][spec["model"]["vocab"][token]])


def test_result_loads_without_a_warning_and_speaks_the_new_vocabulary(tmp_path: Path, setting, tokenizers) -> None:
    folder = swapped(tmp_path, setting["instruct"], tokenizers["new"])
    model, loading = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    new, text = AutoTokenizer.from_pretrained(tokenizers["new"]), "Привет, мир! Hello."
    assert tokenizer(text).input_ids == new(text).input_ids
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Привет"}], tokenize=False)
    assert chat == "<|user|>Привет<|end|>"
    assert tokenizer(chat, add_special_tokens=False).input_ids[0] == tokenizer.convert_tokens_to_ids("<|user|>")
    assert model.config.eos_token_id == tokenizer.convert_tokens_to_ids(
        tokenizer.convert_ids_to_tokens(model.config.eos_token_id)
    )
    assert model.generate(**tokenizer(text, return_tensors="pt", return_token_type_ids=False)).shape[0] == 1


@pytest.mark.parametrize("content", [None, "{}", '{"model": {"type": "Other", "vocab": {}}}', "nothing"])
def test_tokenizer_that_cannot_be_read(tmp_path: Path, setting, content: str | None) -> None:
    (tmp_path / "tokenizer").mkdir()
    if content is not None:
        (tmp_path / "tokenizer" / "tokenizer.json").write_text(content)
    with pytest.raises(VocabularyError, match="tokenizer"):
        swapped(tmp_path, setting["instruct"], tmp_path / "tokenizer")
    assert not (tmp_path / "run" / "out").exists()
