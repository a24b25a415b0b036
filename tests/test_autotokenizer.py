"""lepmerge reads a folder's tokenizer as AutoTokenizer does, and the plan checks that outputs will be read so too."""

import importlib.util
import json
from base64 import b64encode
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pico
import pytest
import sentencepiece
import torch
import yaml
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from lepmerge.errors import VocabularyError
from lepmerge.vocabulary import autotokenizer
from lepmerge.vocabulary.autotokenizer import MODEL_TYPES, check_loads, load_tokenizer
from lepmerge.vocabulary.vocabulary import Vocabulary

FIVE = int(version("transformers").partition(".")[0]) >= 5
TEXTS = ["Hello, world! 123", "a  2 12345 ½", "Привет,  мир", "x<s>y</s><pad>", "<|user|>hi<|end|>", "<|more|>"]


def edit(path: Path, **values: Any) -> None:
    """Set keys of a JSON file; None takes a key out."""
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({key: value for key, value in {**content, **values}.items() if value is not None}))


def assert_read_as_loaded(folder: Path) -> None:
    """Assert that lepmerge's ids, with special tokens and without, are AutoTokenizer's."""
    loaded = AutoTokenizer.from_pretrained(folder)
    own = Vocabulary.in_folder(folder)
    for text in TEXTS:
        assert own.tokenizer.encode(text).ids == loaded.encode(text), text
        assert own.tokenizer.encode(text, add_special_tokens=False).ids == loaded.encode(text, add_special_tokens=False)
    assert own.tokenizer.get_vocab() == loaded.get_vocab()


def recipe(folder: Path, step: dict[str, Any], **models: Path) -> Path:
    path = folder / "recipe.yaml"
    models_as_text = {name: str(path) for name, path in models.items()}
    path.write_text(yaml.safe_dump({"models": models_as_text, "steps": [step], "output": {"path": "out"}}))
    return path


def swap(tokenizer: Path) -> dict[str, Any]:
    return {"op": "swap_vocabulary", "tokenizer": str(tokenizer), "init": "mean"}


@pytest.fixture(scope="module")
def russian_folder(tmp_path_factory: pytest.TempPathFactory, russian: Tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("russian")
    pico.save_tokenizer(russian, folder)
    return folder


@pytest.fixture
def instruct(tmp_path: Path, english: Tokenizer) -> Path:
    folder = tmp_path / "instruct"
    pico.save_model(folder, english, chat=True, extra=["<|more|>"])
    return folder


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of type qwen2. transformers 5 always loads Qwen2Tokenizer for it, whatever tokenizer_config.json says."""
    pattern = autotokenizer_pattern()
    tokenizer = pico.byte_level(pico.ENGLISH, 400, special=(*pico.SPECIAL, "<|endoftext|>"))
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    folder = pico.save_model(tmp_path_factory.mktemp("qwen") / "model", tokenizer)
    edit(folder / "config.json", model_type="qwen2", architectures=["Qwen2ForCausalLM"])
    weights = load_file(folder / "model.safetensors")
    for name in [name for name in weights if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight"))]:
        weights[name.replace("weight", "bias")] = torch.zeros(len(weights[name]), dtype=weights[name].dtype)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    edit(folder / "tokenizer_config.json", tokenizer_class="Qwen2Tokenizer")
    return folder


def autotokenizer_pattern() -> str:
    """Return the words of Qwen2, as its published tokenizer.json has them."""
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    )


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_model_types_for_which_nothing_is_asked(tmp_path: Path, english, model_type: str | None, monkeypatch) -> None:
    digits = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer = Tokenizer.from_str(english.to_str())
    tokenizer.pre_tokenizer = digits
    pico.save_tokenizer(tokenizer, tmp_path, chat=True)
    edit(tmp_path / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    if model_type is not None:
        edit(tmp_path / "config.json", model_type=model_type)
    assert_read_as_loaded(tmp_path)
    monkeypatch.setattr(autotokenizer, "load_tokenizer", lambda folder: pytest.fail("transformers was asked"))
    assert Vocabulary.in_folder(tmp_path).tokenizer.encode("12").tokens == ["1", "2"]


@pytest.mark.parametrize(
    "settings",
    [
        {"tokenizer_class": "GPT2Tokenizer"},
        {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True},
        {"tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": True},
        {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": True, "add_eos_token": True},
        {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<the pad>"},
        {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "the"},
        {"tokenizer_class": "PreTrainedTokenizerFast", "additional_special_tokens": ["<new>"]},
        {"tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": {"403": {"content": "<far>"}}},
        {"tokenizer_class": None},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_settings_that_change_the_tokenizer(instruct: Path, settings: dict[str, Any]) -> None:
    edit(instruct / "tokenizer_config.json", **settings)
    assert_read_as_loaded(instruct)


@pytest.mark.parametrize("file", ["added_tokens.json", "special_tokens_map.json"])
def test_files_that_add_tokens(instruct: Path, file: str) -> None:
    edit(instruct / "tokenizer_config.json", added_tokens_decoder=None)
    edit(instruct / file, **({"<|more|>": 403, "<new>": 404} if "added" in file else {"cls_token": "<cls>"}))
    assert_read_as_loaded(instruct)


def test_truncation_in_tokenizer_json_plays_no_part(instruct: Path) -> None:
    tokenizer = Tokenizer.from_file(str(instruct / "tokenizer.json"))
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(instruct / "tokenizer.json"))
    assert_read_as_loaded(instruct)


@pytest.mark.skipif(not FIVE, reason="transformers 4 takes tokenizer.json as it is")
def test_a_plan_notes_what_the_class_replaces(tmp_path: Path, instruct: Path, russian_folder: Path) -> None:
    spec = json.loads((instruct / "tokenizer.json").read_text())
    digits = {"type": "Digits", "individual_digits": True}
    edit(
        instruct / "tokenizer.json",
        pre_tokenizer={"type": "Sequence", "pretokenizers": [digits, spec["pre_tokenizer"]]},
    )
    edit(instruct / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer")
    result = pico.command("plan", recipe(tmp_path, swap(russian_folder), instruct=instruct))
    assert result.exit_code == 0
    line = next(line for line in result.stdout.splitlines() if "GPT2Tokenizer" in line)
    assert line.startswith(f"note      {instruct}: transformers {version('transformers')} loads GPT2Tokenizer, which")
    assert "changes pre_tokenizer, added_tokens of tokenizer.json" in line


TOKEN = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
OBJECTS = {
    "list": {"additional_special_tokens": [{"content": "<|more|>", **TOKEN}]},
    "new list": {"extra_special_tokens": [{"content": "<|more|>", **TOKEN}]},
    "typed": {"bos_token": {"__type": "AddedToken", "content": "<s>", **TOKEN}},
    "plain": {"bos_token": {"content": "<s>", **TOKEN}},
    "named": {"extra_special_tokens": {"image_token": "<|more|>"}, "image_token": "<|more|>"},
}


@pytest.mark.parametrize("name", OBJECTS)
def test_tokens_written_as_objects(tmp_path: Path, instruct: Path, russian_folder: Path, name: str) -> None:
    edit(instruct / "tokenizer_config.json", extra_special_tokens=None, additional_special_tokens=None)
    edit(instruct / "tokenizer_config.json", **OBJECTS[name])
    result = pico.command("run", recipe(tmp_path, swap(russian_folder), instruct=instruct), "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    loaded = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert loaded.tokenize("<|more|>a") == ["<|more|>", "a"] and loaded.bos_token == "<s>"
    written = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    expected = {"bos_token": "<s>", "eos_token": "<|end|>", "pad_token": "<pad>"}
    if name == "named":
        expected["image_token"] = "<|more|>"
    assert {key: value for key, value in written.items() if key.endswith("_token")} == expected
    assert written.get("additional_special_tokens") == (["<|more|>"] if "list" in name else None)
    assert loaded.chat_template is not None and len(loaded) == Vocabulary.in_folder(tmp_path / "out").size


@pytest.mark.parametrize("key", ["pad_token", "extra_special_tokens"])
def test_a_token_that_only_the_settings_name(
    tmp_path: Path, english: Tokenizer, russian_folder: Path, key: str, monkeypatch
) -> None:
    # beyond the table transformers would look up a row that is not there; in its padding the token has a row
    for num_rows, has_row in ((english.get_vocab_size(), False), (english.get_vocab_size() + 8, True)):
        folder = tmp_path / str(num_rows)
        instruct = pico.save_model(folder / "instruct", english, num_rows=num_rows)
        edit(instruct / "tokenizer_config.json", **{key: "<new>" if key == "pad_token" else ["<new>"]})
        result = pico.command("run", recipe(folder, swap(russian_folder), instruct=instruct), "--device", "cpu")
        assert result.exit_code == 0, result.stderr
        loaded = AutoTokenizer.from_pretrained(folder / "out")
        report = json.loads((folder / "out" / "lepmerge_report.json").read_text())
        note = f"{instruct}: 1 added tokens beyond the {num_rows} rows of the tables are left out"
        assert (loaded.pad_token == "<new>") == (has_row and key == "pad_token")
        assert ("<new>" in loaded.get_vocab()) == has_row and (note in report["notes"]) == (not has_row)


@pytest.mark.skipif(not FIVE, reason="transformers 4 respects the class that tokenizer_config.json names")
class TestAClassThatTheModelTypeForces:
    cause = "loads Qwen2Tokenizer for the model type 'qwen2', whatever tokenizer_config.json says"
    way_on = "lepmerge tokenizer train --type bpe --like"

    @pytest.fixture
    def unigram(self, tmp_path: Path) -> Path:
        pico.save_tokenizer(pico.unigram(pico.RUSSIAN, 90), tmp_path / "unigram")
        return tmp_path / "unigram"

    def test_before_a_tokenizer_is_trained(self, tmp_path: Path, qwen: Path) -> None:
        (tmp_path / "corpus.txt").write_bytes(b"\xff not text: it is never read")
        command = ["tokenizer", "train", tmp_path / "corpus.txt", "--type", "unigram", "--vocab-size", 420]
        result = pico.command(*command, "--like", qwen, "-o", tmp_path / "new")
        pico.assert_one_line_error(result, 1, self.cause, self.way_on)
        assert not (tmp_path / "new").exists()

    def test_in_a_plan(self, tmp_path: Path, qwen: Path, unigram: Path) -> None:
        result = pico.command("plan", recipe(tmp_path, swap(unigram), instruct=qwen))
        pico.assert_one_line_error(result, 1, self.cause, self.way_on)

    def test_before_a_training(self, tmp_path: Path, qwen: Path, unigram: Path) -> None:
        config = {"model": str(qwen), "tokenizer": str(unigram), "data": "corpus.txt", "output": "out"}
        (tmp_path / "train.yaml").write_text(yaml.safe_dump(config))
        (tmp_path / "corpus.txt").write_bytes(b"\xff not text: it is never read")
        result = pico.command("train", tmp_path / "train.yaml")
        pico.assert_one_line_error(result, 1, self.cause, self.way_on)

    def test_its_own_way_of_splitting_goes_through(self, tmp_path: Path, qwen: Path) -> None:
        (tmp_path / "corpus.txt").write_text("\n\n".join(pico.RUSSIAN * 9))
        command = ["tokenizer", "train", tmp_path / "corpus.txt", "--type", "bpe", "--vocab-size", 420]
        result = pico.command(*command, "--like", qwen, "-o", tmp_path / "new")
        assert result.exit_code == 0, result.stderr
        plan = pico.command("plan", recipe(tmp_path, swap(tmp_path / "new"), instruct=qwen))
        assert plan.exit_code == 0, plan.stderr


def test_an_output_with_other_ids_is_refused(english: Tokenizer) -> None:
    spec = json.loads(english.to_str())
    with pytest.raises(VocabularyError, match="new tokenizer for x: AutoTokenizer .* has 388 tokens instead of 387"):
        check_loads(spec, {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<new>"}, {}, like="x")


class TestTokensBeyondTheTable:
    """Gemma-3-1B and CodeLlama-Python as published."""

    @pytest.fixture
    def short(self, tmp_path: Path, english: Tokenizer) -> Path:
        folder = pico.save_model(tmp_path / "short", english, num_rows=english.get_vocab_size())
        pico.save_tokenizer(english, folder, extra=["<image>", AddedToken("▁<PRE>", normalized=False)])
        return folder

    def test_run(self, tmp_path: Path, setting, short: Path) -> None:
        step = {"op": "propagate_embeddings", "base": "base", "adapted": "adapted", "method": "swap"}
        path = recipe(tmp_path, step, instruct=short, base=setting["base"], adapted=setting["adapted"])
        result = pico.command("run", path, "--device", "cpu")
        assert result.exit_code == 0, result.stderr
        out = Vocabulary.in_folder(tmp_path / "out")
        assert "<image>" not in out.all_ids and out.size == Vocabulary.in_folder(setting["adapted"]).size
        assert len(AutoTokenizer.from_pretrained(tmp_path / "out")) == out.size
        notes = json.loads((tmp_path / "out" / "lepmerge_report.json").read_text())["notes"]
        assert notes == [f"{short}: 2 added tokens beyond the 387 rows of the tables are left out"]

    def test_extended(self, tmp_path: Path, short: Path) -> None:
        (tmp_path / "corpus.txt").write_text("\n\n".join(pico.RUSSIAN * 9))
        command = ["tokenizer", "extend", short, tmp_path / "corpus.txt", "--add", 9, "-o", tmp_path / "new"]
        assert pico.command(*command).exit_code == 0
        result = pico.command("run", recipe(tmp_path, swap(tmp_path / "new"), instruct=short), "--device", "cpu")
        assert result.exit_code == 0, result.stderr
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        assert tokenizer.convert_tokens_to_ids("<image>") == 387 and config["vocab_size"] == len(tokenizer) == 398

    def test_ordinary_tokens_are_refused(self, tmp_path: Path, russian: Tokenizer, russian_folder: Path) -> None:
        short = pico.save_model(tmp_path / "short", russian, num_rows=russian.get_vocab_size() - 10)
        result = pico.command("plan", recipe(tmp_path, swap(russian_folder), instruct=short))
        pico.assert_one_line_error(
            result, 1, f"10 tokens beyond the {russian.get_vocab_size() - 10} rows", "resize_token_embeddings"
        )


class TestSentencePieceModel:
    """A folder that has tokenizer.model and no tokenizer.json."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "corpus.txt").write_text("\n".join([*pico.ENGLISH, *pico.RUSSIAN] * 9))
        options: dict[str, Any] = {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity"}
        sentencepiece.SentencePieceTrainer.train(
            input=str(tmp_path / "corpus.txt"), model_prefix=str(tmp_path / "tokenizer"), vocab_size=500,
            remove_extra_whitespaces=False, minloglevel=2, **options,
        )  # fmt: skip
        names = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        edit(tmp_path / "tokenizer_config.json", **names)
        edit(tmp_path / "config.json", model_type="llama")
        return tmp_path

    def test_what_is_missing_is_named(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        result = pico.command("tokenizer", "report", folder, "--text", folder / "corpus.txt")
        message = "tokenizer.model but no tokenizer.json. Converting it needs sentencepiece and protobuf: "
        pico.assert_one_line_error(result, 1, message + "pip install 'lepmerge[sentencepiece]'")
        extras = (Path(__file__).parent.parent / "pyproject.toml").read_text()
        assert 'sentencepiece = ["protobuf>=' in extras

    def test_it_is_converted(self, folder: Path) -> None:
        pytest.importorskip("google.protobuf")
        own = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        vocabulary, loaded = Vocabulary.in_folder(folder), AutoTokenizer.from_pretrained(folder)
        for text in ("Seven engineers", " two  spaces", "мельница 123"):
            ids = vocabulary.tokenizer.encode(text, add_special_tokens=False).ids
            assert ids == loaded.encode(text, add_special_tokens=False), text
            # transformers 5 puts no second space before a text that begins with one, other than sentencepiece
            assert text.startswith(" ") or ids == own.encode(text), text
        assert vocabulary.names["bos_token"] == "<s>"


class TestTekken:
    """A folder with tekken.json, as Mistral publishes it."""

    @pytest.fixture
    def folder(self, tmp_path: Path, english: Tokenizer) -> Path:
        """A model with the 256 bytes and three words behind 1000 special tokens, and a vocabulary for them."""
        words = [*(bytes([byte]) for byte in range(256)), b"th", b"the", b" the"]
        pattern = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        sizes = {"num_vocab_tokens": len(words), "default_vocab_size": len(words) + 1000}
        config = {"pattern": pattern, **sizes, "default_num_special_tokens": 1000, "version": "v3"}
        vocab = [
            {"rank": rank, "token_bytes": b64encode(word).decode(), "token_str": None}
            for rank, word in enumerate(words)
        ]
        folder = pico.save_model(tmp_path / "model", english, num_rows=len(words) + 1000)
        edit(folder / "config.json", model_type="mistral", architectures=["MistralForCausalLM"])
        (folder / "tekken.json").write_text(json.dumps({"config": config, "vocab": vocab}))
        (tmp_path / "text.txt").write_text("\n\n".join(pico.ENGLISH * 9))
        return folder

    def test_a_tokenizer_json_comes_first(self, tmp_path: Path, folder: Path) -> None:
        """It does wherever mistral-common is installed, too, as in every environment with vLLM."""
        result = pico.command("compare", folder, "--text", tmp_path / "text.txt", "--copies", 0, "--device", "cpu")
        assert result.exit_code == 0, result.stderr
        assert Vocabulary.in_folder(folder).size == len(
            json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
        )

    def test_alone_it_is_converted_or_the_remedy_is_named(self, folder: Path) -> None:
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            (folder / name).unlink(missing_ok=True)
        result = pico.command("inspect", folder, "--json")
        if not FIVE:
            pico.assert_one_line_error(result, 1, "tekken.json but no tokenizer.json", "pip install 'transformers>=5'")
        elif importlib.util.find_spec("mistral_common") is None:
            pico.assert_one_line_error(result, 1, "tekken.json but no tokenizer.json", "pip install mistral-common")
        else:
            assert result.exit_code == 0, result.stderr
            found = json.loads(result.stdout)["vocabulary"]
            assert (found["tokens"], found["rows"], found["family"]) == (1259, 1259, "byte_level")
            assert Vocabulary.in_folder(folder).all_ids["Ġthe"] == 1258


def test_no_advice_of_transformers_reaches_the_user(instruct: Path, capfd: pytest.CaptureFixture[str]) -> None:
    edit(instruct / "tokenizer_config.json", tokenizer_class="LlamaTokenizer")
    load_tokenizer(instruct)
    assert capfd.readouterr().err == ""
