"""Token ids in configs follow the vocabulary, value by value; what is lost is named."""

import json
import shutil
from pathlib import Path

import pico
import pytest
import transformers

from lepmerge.models.configs import as_read, remap_ids, set_vocab_size, ties

NEW = {1: 11, 2: 12, 3: 13, 4: 14}
VALUES = [
    ("eos_token_id", 2, 12, []),
    ("eos_token_id", [1, 2], [11, 12], []),
    ("eos_token_id", [1, 9], [11], ["eos_token_id 9"]),
    ("eos_token_id", [9], None, ["eos_token_id 9"]),
    ("pad_token_id", -1, -1, []),
    ("pad_token_id", None, None, []),
    ("decoder_start_token_id", 9, None, ["decoder_start_token_id 9"]),
    ("forced_bos_token_id", 4, 14, []),
    ("forced_eos_token_id", [3, 4], [13, 14], []),
    ("image_token_index", 3, 13, []),
    ("boi_token_index", 4, 14, []),
    ("image_token_index", 9, -1, ["image_token_index 9"]),
    ("vision_start_token_id", 9, -1, ["vision_start_token_id 9"]),
    ("video_token_id", 9, -1, ["video_token_id 9"]),
    ("image_token_ids", [1, 9], [11], ["image_token_ids 9"]),
    ("suppress_tokens", [4, 9, 1], [14, 11], ["suppress_tokens 9"]),
    ("begin_suppress_tokens", [2], [12], []),
    ("bad_words_ids", [[1], [2, 9], [3, 4]], [[11], [13, 14]], ["bad_words_ids [2, 9]"]),
    ("bad_words_ids", [[9]], None, ["bad_words_ids [9]"]),
    ("force_words_ids", [[1, 2], [[3], [4]]], [[11, 12], [[13], [14]]], []),
    ("force_words_ids", [[[3], [9]]], None, ["force_words_ids [[3], [9]]"]),
    ("sequence_bias", [[[1, 2], -5.0], [[9], 2.0]], [[[11, 12], -5.0]], ["sequence_bias [9]"]),
    ("forced_decoder_ids", [[1, 4], [2, 9]], [[1, 14]], ["forced_decoder_ids 9"]),
    ("max_new_tokens", 2, 2, []),
    ("num_attention_heads", 4, 4, []),
    ("tie_word_embeddings", True, True, []),
]


@pytest.mark.parametrize(("key", "value", "expected", "expected_lost"), VALUES)
def test_remapped_values(key: str, value, expected, expected_lost: list[str]) -> None:
    for config, get in (
        ({key: value}, lambda c: c[key]),
        ({"text_config": {key: value}}, lambda c: c["text_config"][key]),
    ):
        lost: list[str] = []
        found = get(remap_ids(config, NEW, lost))
        assert found == expected and type(found) is type(expected) and lost == expected_lost


@pytest.mark.parametrize("name", ["Llama4Config", "Qwen2_5_VLConfig", "LlavaConfig", "Mistral3Config", "Gemma3Config"])
def test_transformers_loads_a_config_whose_ids_are_lost(name: str) -> None:
    """transformers 5 checks the types of values: an id of images must be a number."""
    config_class, lost = getattr(transformers, name), []
    remapped = remap_ids(json.loads(config_class().to_json_string(use_diff=False)), {}, lost)
    assert lost and config_class.from_dict(remapped).to_dict()


def test_a_new_vocabulary_renames_ids_and_notes_lost_ones(tmp_path: Path, setting, english) -> None:
    russian = pico.byte_level(pico.RUSSIAN, 400)
    folder = Path(shutil.copytree(setting["instruct"], tmp_path / "instruct"))
    old = english.get_vocab()
    only_old = min((id, token) for token, id in old.items() if token not in russian.get_vocab())[0]
    shared = [old["e"], old["o"]]
    path = folder / "generation_config.json"
    config = json.loads(path.read_text())
    values = {"suppress_tokens": [*shared, only_old], "bad_words_ids": [shared, [old["a"], only_old]]}
    path.write_text(json.dumps({**config, **values}))
    pico.save_tokenizer(russian, tmp_path / "tokenizer")
    step = {"op": "swap_vocabulary", "tokenizer": str(tmp_path / "tokenizer")}
    out = pico.run_recipe(tmp_path / "run", {"instruct": folder}, [step])
    got = json.loads((out / "generation_config.json").read_text())
    new = [russian.token_to_id("e"), russian.token_to_id("o")]
    assert got["suppress_tokens"] == new and got["bad_words_ids"] == [new]
    notes = json.loads((out / "lepmerge_report.json").read_text())["notes"]
    why = "the output has no such token, so the id was removed"
    assert notes == [f"suppress_tokens {only_old}: {why}", f"bad_words_ids {[old['a'], only_old]}: {why}"]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, {"vocab_size": 9}),
        ({"vocab_size": 5}, {"vocab_size": 9}),
        ({"text_config": {}}, {"text_config": {"vocab_size": 9}}),
        ({"vocab_size": 5, "text_config": {}}, {"vocab_size": 9, "text_config": {"vocab_size": 9}}),
    ],
)
def test_the_vocabulary_size_is_written_where_the_language_model_reads_it(config: dict, expected: dict) -> None:
    set_vocab_size(config, 9)
    assert config == expected


def test_numbers_that_json_lacks_are_read_as_transformers_writes_them(tmp_path: Path) -> None:
    if not hasattr(transformers, "NemotronHConfig"):
        pytest.skip(f"transformers {transformers.__version__} has no NemotronHConfig")
    config = transformers.NemotronHConfig(vocab_size=9, time_step_limit=(0.0, float("inf")))
    config.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert as_read(stored)["time_step_limit"] == [0.0, float("inf")] and ties(stored)[0] is False


def test_the_decoder_vocabulary_size_of_marian_follows() -> None:
    config = {"vocab_size": 9, "decoder_vocab_size": 9}
    set_vocab_size(config, 12)
    assert config == {"vocab_size": 12, "decoder_vocab_size": 12}
