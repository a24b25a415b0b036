"""lepmerge train as a user runs it: output, resume after kills, sweep, probe, the recipe key, faults."""

import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pico
import pytest
import torch
import training
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import lepmerge
from lepmerge.commands.main import main
from lepmerge.errors import OutputError, Stopped, TrainingError
from lepmerge.training.config import load_train_config
from lepmerge.training.events import Note, StepDone, TrainingEvent
from lepmerge.training.loop import OutOfMemory
from lepmerge.training.run import train

SPEED = {"speed.jsonl", "lepmerge_run.json"}


def contents(folder: Path) -> dict[str, bytes]:
    """Return file name → bytes, without the files of seconds and memory."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name not in SPEED}


def text_of(event: TrainingEvent) -> str:
    return event.text if isinstance(event, Note) else ""


def trained(path: Path, *overrides: str, **options) -> Path:
    return train(load_train_config(path, overrides), **options)


def test_output(tmp_path: Path, english) -> None:
    path = training.write_setting(tmp_path, english, train={"rows": "new"}, dtype=torch.bfloat16)
    before = pico.tree(tmp_path / "base", tmp_path / "vocabulary")
    folder = trained(path)
    assert pico.tree(tmp_path / "base", tmp_path / "vocabulary") == before
    assert sorted(os.listdir(folder)) == [
        "README.md", "config.json", "curves.png", "embeddings.safetensors", "generation_config.json",
        "lepmerge_run.json", "lepmerge_train.json", "metrics.jsonl", "speed.jsonl", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip
    model = lepmerge.open_model(folder)
    base = load_file(tmp_path / "base" / "model.safetensors")
    for name, table in load_file(folder / "embeddings.safetensors").items():
        assert table.dtype == torch.bfloat16 and len(table) == model.num_rows
        assert torch.equal(table[: len(base[name])].view(torch.int16), base[name].view(torch.int16))
    report = json.loads((folder / "lepmerge_train.json").read_text())
    assert report["bits_per_byte"]["last"]["ru"] < report["bits_per_byte"]["first"]["ru"] - 0.1
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics] == list(range(report["steps"] + 1))
    assert report["tokens"] == metrics[-1]["tokens"] > 0
    steps = metrics[1:]
    tenth = math.ceil(len(steps) / 10)
    weights = [line["tokens"] - before["tokens"] for before, line in pairwise([{"tokens": 0}, *steps])]
    for name, part in (("first", slice(tenth)), ("last", slice(-tenth, None))):
        nats = sum(line["loss"] * weight for line, weight in zip(steps[part], weights[part], strict=True))
        assert report["loss"][name] == pytest.approx(nats / sum(weights[part]), abs=1e-4)
    with pytest.raises(OSError):
        AutoModelForCausalLM.from_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder).encode("я") == lepmerge.open_model(folder).vocabulary.encode(
        ["я".encode()]
    )[0]  # fmt: skip
    assert not (tmp_path / ".out.lepmerge").exists()


def test_again_gives_the_same_bytes(tmp_path: Path, english) -> None:
    path = training.write_setting(tmp_path, english)
    first = trained(path)
    stamp = (first / "embeddings.safetensors").stat().st_mtime_ns
    assert trained(path) == first and (first / "embeddings.safetensors").stat().st_mtime_ns == stamp  # left alone
    second = trained(path, f"output={tmp_path / 'second'}")
    assert contents(first) == contents(second)


def test_a_finished_training_says_so(tmp_path: Path, english) -> None:
    path = training.write_setting(tmp_path, english)
    note = f"note: {tmp_path / 'out'} is complete already: nothing was done\n"
    first, again = (pico.command("train", path, "--device", "cpu") for _ in range(2))
    assert (
        note not in first.stderr and again.stderr == f"train {path}: loading\n{note}" and again.stdout == first.stdout
    )
    other = pico.command("train", path, "--device", "cpu", "--set", "seed=5")
    pico.assert_one_line_error(other, 1, "choose another output, or replace it with --overwrite")


def test_without_a_terminal_lines_tell_of_the_steps(tmp_path: Path, english) -> None:
    path = training.write_setting(tmp_path, english)
    result = pico.command("train", path, "--device", "cpu")
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    evaluated = [line for line in map(json.loads, lines[1:]) if "bits_per_byte" in line]
    assert evaluated
    for line in evaluated:
        expected = (
            f"step {line['step']}/{len(lines) - 1}: loss {line['loss']:.3f}, "
            f"ru {line['bits_per_byte']['ru']:.3f} bits per byte, "
        )
        assert expected in result.stderr
    assert "\nreading corpus.jsonl\nstep 1/" in result.stderr
    assert "step" not in pico.command("train", path, "--device", "cpu", "--overwrite", "-q").stderr


def test_full_writes_a_model_that_computes_what_was_trained(tmp_path: Path, english) -> None:
    path = training.write_setting(tmp_path, english)
    result = pico.command("train", path, "--full", tmp_path / "full", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["output"] == str(tmp_path / "out")
    model, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "full", output_loading_info=True)
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    table = load_file(tmp_path / "out" / "embeddings.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(model.get_input_embeddings().weight, table)
    bits = json.loads(result.stdout)["bits_per_byte"]["last"]["ru"]
    session = training.session_of(path, f"model={tmp_path / 'full'}", "tokenizer=null")
    from lepmerge.training.held_out import bits_per_byte

    assert bits_per_byte(session.learner(1e-3), session.held_out)["ru"] == pytest.approx(bits, rel=1e-6)


def test_held_out_bits_per_byte_are_those_of_compare(tmp_path: Path, english) -> None:
    """Of a text with long and short lines, white space at their ends, and a limit in the middle of a paragraph."""
    path = training.write_setting(
        tmp_path, english, evaluate={"data": {"ru": {"path": "long.txt", "limit": 2500}}}, data="few.txt"
    )
    (tmp_path / "few.txt").write_text(pico.ENGLISH[0])
    lines = [f"  {' '.join(pico.RUSSIAN)} \n{pico.ENGLISH[0]}\n\n \n{pico.ENGLISH[1]} \n  {pico.RUSSIAN[0]}\n"] * 3
    (tmp_path / "long.txt").write_text("\n\n".join(lines))
    result = pico.command("train", path, "--full", tmp_path / "full", "--device", "cpu", "--json")
    assert result.exit_code == 0, result.stderr
    options = ("--text", f"ru={tmp_path / 'long.txt'}", "--max-bytes", 2500, "--copies", 0, "--device", "cpu", "--json")
    compared = pico.command("compare", tmp_path / "full", *options)
    assert compared.exit_code == 0, compared.stderr
    measured = json.loads(compared.stdout)["models"]["full"]["texts"]["ru"]["bits_per_byte"]
    assert measured == pytest.approx(json.loads(result.stdout)["bits_per_byte"]["last"]["ru"], rel=1e-5)


def start(path: Path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "lepmerge", "train", str(path), "--device", "cpu", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def wait_for_steps(folder: Path, number: int, runs: Callable[[], bool]) -> None:
    metrics = folder / ".out.lepmerge" / "train.jsonl"
    while runs() and not (metrics.exists() and metrics.read_bytes().count(b"\n") > number):
        time.sleep(0.005)


def slow_setting(folder: Path, english, **options) -> Path:
    """A training of a few seconds, so that it can be killed within."""
    return training.write_setting(folder, english, repeat=40, max_tokens=20_000, train={"rows": "new"}, **options)


def slow_distillation(folder: Path, english) -> Path:
    return training.write_distillation(folder, english, repeat=10, max_tokens=8_000)


def slow_chats(folder: Path, english) -> Path:
    return training.write_chat_training(folder, english, repeat=40, max_tokens=20_000)


def slow_lora(folder: Path, english) -> Path:
    options = {"train": {"rows": "new"}, "lora": {"rank": 2, "dropout": 0.3}}
    return training.write_setting(folder, english, repeat=10, max_tokens=5_000, **options)


def train_quietly(path: Path) -> None:
    main(["train", str(path), "--device", "cpu", "-q"], standalone_mode=False)


def check_kills(processes, tmp_path: Path, english, setting: Callable[[Path, Any], Path], *, kills: int) -> None:
    """Kill a training at random steps, in processes forked from a server that has imported everything."""
    undisturbed = trained(setting(tmp_path / "once", english))
    path = setting(tmp_path / "killed", english)
    generator = random.Random(0)
    steps = len((undisturbed / "metrics.jsonl").read_text().splitlines()) - 1
    killed = 0
    for number in range(kills):
        process = processes.Process(target=train_quietly, args=(path,))
        process.start()
        wait_for_steps(path.parent, generator.randrange(steps * number // kills, steps), process.is_alive)
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
    assert killed
    resumed = trained(path)
    ours, theirs = contents(resumed), contents(undisturbed)
    weights = "embeddings.safetensors" if "embeddings.safetensors" in theirs else "adapter_model.safetensors"
    for name in (weights, "metrics.jsonl", "curves.png", "README.md"):
        assert ours[name] == theirs[name], name


@pytest.mark.parametrize(
    "setting", [slow_setting, *(pytest.param(each, marks=pytest.mark.slow) for each in (slow_distillation, slow_lora))]
)
def test_killed_and_resumed_gives_the_same_bytes(processes, tmp_path: Path, english, setting) -> None:
    check_kills(processes, tmp_path, english, setting, kills=2)


@pytest.mark.slow
@pytest.mark.parametrize("setting", [slow_setting, slow_distillation, slow_chats])
def test_killed_twenty_times(processes, tmp_path: Path, english, setting) -> None:
    check_kills(processes, tmp_path, english, setting, kills=20)


def test_sigterm_writes_a_checkpoint(tmp_path: Path, english) -> None:
    path = slow_setting(tmp_path, english, checkpoint_every=1000)
    process = start(path)
    wait_for_steps(tmp_path, 5, lambda: process.poll() is None)
    process.terminate()
    _, stderr = process.communicate()
    assert process.returncode == 143
    (error,) = [line for line in stderr.splitlines() if line.startswith("error")]
    assert "SIGTERM received: stopped after step" in error
    assert (tmp_path / ".out.lepmerge" / "train.safetensors").exists() and not (tmp_path / "out").exists()
    notes: list[str] = []
    trained(path, on_event=lambda event: notes.append(text_of(event)))
    assert any(note.startswith("resuming after step") for note in notes)
    other = trained(slow_setting(tmp_path / "other", english, checkpoint_every=1000))
    assert contents(tmp_path / "out")["metrics.jsonl"] == contents(other)["metrics.jsonl"]


def test_a_smaller_micro_batch_continues(tmp_path: Path, english) -> None:
    """As after moving to a smaller GPU. A larger `micro_batch` would not undo an earlier halving for lack of memory."""
    path = training.write_setting(tmp_path, english, max_tokens=3000)

    def stop(event: TrainingEvent) -> None:
        if isinstance(event, StepDone) and event.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Stopped, match="SIGINT received: stopped after step 3") as stopped:
        trained(path, on_event=stop)
    assert stopped.value.exit_code == 130  # Ctrl-C; SIGTERM is 143
    events: list[TrainingEvent] = []
    again = ("micro_batch=1", "activation_checkpointing=true")
    trained(path, *again, on_event=events.append)
    assert Note("micro_batch is now 1, it was 2: losses may differ in the last digits") in events
    assert {event.micro_batch for event in events if isinstance(event, StepDone)} == {1}
    other = trained(training.write_setting(tmp_path / "other", english, max_tokens=3000))
    ours, theirs = (
        [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()[1:]]
        for folder in (tmp_path / "out", other)
    )
    assert ours == pytest.approx(theirs, rel=1e-5) and len(ours) > 4
    complete: list[str] = []
    trained(path, "micro_batch=2", on_event=lambda event: complete.append(text_of(event)))
    assert any("complete already" in note for note in complete)


def test_another_configuration_does_not_take_up_or_lose_the_steps(tmp_path: Path, english) -> None:
    path = training.write_setting(tmp_path, english)

    def stop(event: TrainingEvent) -> None:
        if isinstance(event, StepDone) and event.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped, match="after step 3"):
        trained(path, on_event=stop)
    with pytest.raises(OutputError, match=r"holds 3 steps .*learning_rate was 0.01.*--restart"):
        trained(path, "learning_rate=1e-3")
    kept = (tmp_path / ".out.lepmerge" / "train.safetensors").read_bytes()
    assert kept
    trained(path, "learning_rate=1e-3", restart=True)
    assert json.loads((tmp_path / "out" / "lepmerge_train.json").read_text())["learning_rate"] == 1e-3


def test_sweep_goes_on_with_the_best_rate(tmp_path: Path, english) -> None:
    path = training.write_setting(tmp_path, english, learning_rate=[1e-5, 1e-2, 1e-4], sweep="20%")
    folder = trained(path)
    report = json.loads((folder / "lepmerge_train.json").read_text())
    tried = {entry["learning_rate"]: entry["bits_per_byte"]["ru"] for entry in report["sweep"]}
    assert report["learning_rate"] == min(tried, key=lambda rate: tried[rate]) == 1e-2
    alone = trained(path, "learning_rate=1e-2", "sweep=null", f"output={tmp_path / 'alone'}")
    metrics = [[json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()] for f in (folder, alone)]
    assert [line.get("loss") for line in metrics[0]] == [line.get("loss") for line in metrics[1]]
    assert contents(folder)["embeddings.safetensors"] == contents(alone)["embeddings.safetensors"]


def test_probe_ranks(tmp_path: Path, english) -> None:
    path = training.write_setting(tmp_path, english, learning_rate=[1e-2, 1e-6], sweep="20%")
    result = pico.command("train", path, "--probe", 3, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)["trials"]
    bits = [entry["bits_per_byte"]["ru"] for entry in found]
    assert len(found) == 6 and bits == sorted(bits) and found[0]["learning_rate"] == 1e-2
    assert not (tmp_path / "out").exists() and not (tmp_path / ".out.lepmerge").exists()


def test_recipe_key(tmp_path: Path, english) -> None:
    path = training.write_setting(tmp_path, english, output="adapted")
    pico.save_instruct(tmp_path / "instruct", tmp_path / "base", english, dtype=torch.float32)
    models = {"base": "base", "instruct": "instruct", "adapted": "{train: config.yaml}"}
    recipe = pico.write_recipe(tmp_path / "recipe.yaml", **models)
    planned = pico.command("plan", recipe)
    assert planned.exit_code == 0 and "adapted is not trained yet" in planned.stdout and "steps of" in planned.stdout
    dry = pico.command("train", path, "--dry-run").stdout
    heads = (
        "training  adapted is not trained yet. `lepmerge run --train` trains it first:\n",
        "The recipe, with the tables of adapted before its training (the shapes are the same):\n",
    )
    assert planned.stdout.startswith(f"{heads[0]}{dry}{heads[1]}output    {tmp_path / 'out'}\n")
    before = json.loads(pico.command("plan", recipe, "--json").stdout)
    assert list(before["trainings"]) == ["adapted"] and before["trainings"]["adapted"]["steps"] > 0
    pico.assert_one_line_error(pico.command("run", recipe), 2, "models.adapted", "lepmerge train", "--train")
    result = pico.command("run", recipe, "--train", "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    assert "propagate_embeddings" in pico.command("plan", recipe).stdout
    after = json.loads(pico.command("plan", recipe, "--json").stdout)
    assert after.keys() == before.keys() and after["trainings"] == {}
    same = ("files", "steps", "vocabulary_rows", "reductions")  # the untrained tables have the same shapes
    assert {key: after[key] for key in same} == {key: before[key] for key in same}
    models["adapted"] = "adapted"
    named = pico.write_recipe(tmp_path / "named.yaml", **models)
    named = lepmerge.load_recipe(named, [f"output.path={tmp_path / 'named'}"])
    folders = (tmp_path / "out", lepmerge.run_plan(lepmerge.make_plan(named), device="cpu"))
    tables = [load_file(folder / "model.safetensors") for folder in folders]
    assert all(torch.equal(table, tables[1][name]) for name, table in tables[0].items())
    path.write_text(path.read_text().replace("learning_rate: 0.01", "learning_rate: 0.02"))
    pico.assert_one_line_error(pico.command("run", recipe), 2, "config.yaml is not finished")


def test_nan_stops_and_names_the_last_checkpoint(tmp_path: Path, english) -> None:
    path = training.write_setting(tmp_path, english)
    weights = load_file(tmp_path / "base" / "model.safetensors")
    row = english.encode(pico.ENGLISH[0]).ids[1]
    weights["model.embed_tokens.weight"][row] = torch.inf
    save_file(weights, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    result = pico.command("train", path, "--device", "cpu", "-q", "--set", "evaluate=null")
    pico.assert_one_line_error(result, 1, "step 1", "the loss is nan", "there is no checkpoint", "learning_rate")


def test_diverging_loss_stops(tmp_path: Path, english) -> None:
    path = training.write_setting(tmp_path, english, learning_rate=0.9, weight_decay=3.0, max_tokens=20_000)
    with pytest.raises(TrainingError, match=r"step \d+: the loss diverges.*last good checkpoint.*step \d+"):
        trained(path)
    assert (tmp_path / ".out.lepmerge" / "train.safetensors").exists()


def test_out_of_memory_halves_the_micro_batch(tmp_path: Path, english, monkeypatch) -> None:
    """Memory cannot run out on purpose on a CPU; the error is the one that CUDA raises."""
    from lepmerge.training.learner import Learner

    accumulate = Learner.accumulate

    def limited(self, batch, totals):
        if len(batch.id_BL) > 1:
            raise OutOfMemory("CUDA out of memory. Tried to allocate 1 GiB")
        return accumulate(self, batch, totals)

    path = training.write_setting(tmp_path, english, micro_batch=4)
    expected = trained(path, "micro_batch=1", f"output={tmp_path / 'one'}")
    monkeypatch.setattr(Learner, "accumulate", limited)
    notes: list[str] = []
    folder = trained(path, on_event=lambda event: notes.append(text_of(event)))
    assert [note for note in notes if "memory" in note] == [
        "out of memory: micro_batch is now 2", "out of memory: micro_batch is now 1",
    ]  # fmt: skip
    assert contents(folder)["embeddings.safetensors"] == contents(expected)["embeddings.safetensors"]
    monkeypatch.setattr(Learner, "accumulate", _always_out)
    with pytest.raises(TrainingError, match="single block of 48 tokens"):
        trained(path, f"output={tmp_path / 'none'}")


def _always_out(self, batch, totals):
    raise OutOfMemory("CUDA out of memory. Tried to allocate 1 GiB")


@pytest.mark.parametrize(
    ("change", "exit_code", "parts"),
    [
        (["data=nowhere.txt"], 1, ["nowhere.txt"]),
        (
            ["data=text/nowhere.jsonl"],
            1,
            ["/text/nowhere.jsonl: no such file"],
        ),  # a file, though it looks like owner/name
        (["data=empty.txt"], 1, ["empty.txt", "empty"]),
        (["data=binary.txt"], 1, ["binary.txt", "1 with NUL characters"]),
        (["data=[{path: corpus.jsonl, column: txet}]"], 1, ["corpus.jsonl:1", "txet", "text"]),
        (["model=nowhere"], 1, ["nowhere"]),
        (["tokenizer=nowhere"], 1, ["nowhere"]),
        (["model=base+base"], 2, ["model: ", "base+base", "a model with an adapter", "lepmerge run"]),
        (["evaluate={data: {ru: empty.txt}}"], 1, ["evaluate.data.ru", "no text"]),
        (["output=corpus.jsonl"], 1, ["corpus.jsonl"]),
        (["output=base/out"], 1, ["is inside the input"]),
        (["learning_rate=2"], 2, ["learning_rate", "less than 1"]),
        (["sweep=20%"], 2, ["sweep"]),
        (["learing_rate=1e-3"], 2, ["learing_rate", "did you mean learning_rate"]),
    ],
)
def test_faults(tmp_path: Path, english, monkeypatch, change: list[str], exit_code: int, parts: list[str]) -> None:
    path = training.write_setting(tmp_path, english)
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "binary.txt").write_bytes(b"\x7fELF\0\0")
    before = pico.tree(tmp_path)
    monkeypatch.chdir(tmp_path)
    arguments = [part for value in change for part in ("--set", value)]
    pico.assert_one_line_error(pico.command("train", path, "--device", "cpu", "-q", *arguments), exit_code, *parts)
    after = {name: entry for name, entry in pico.tree(tmp_path).items() if ".lepmerge" not in name}
    assert after == before


def test_a_tokenizer_beyond_the_table(tmp_path: Path, english, russian) -> None:
    path = training.write_setting(tmp_path, english, tokenizer=None)
    pico.save_tokenizer(russian, tmp_path / "base")
    pico.assert_one_line_error(pico.command("train", path), 1, "tokens beyond", "rows")


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
def test_cuda_that_is_absent(tmp_path: Path, english) -> None:
    path = training.write_setting(tmp_path, english)
    pico.assert_one_line_error(pico.command("train", path, "--device", "cuda"), 1, "cuda")


def test_a_tracker_that_is_absent(tmp_path: Path, english) -> None:
    path = training.write_setting(tmp_path, english)
    pico.assert_one_line_error(pico.command("train", path, "--log-with", "magic"), 1, "--log-with magic", "accelerate")
    assert not (tmp_path / "out").exists()


def test_a_tiny_corpus_is_trained_and_said_to_be_tiny(tmp_path: Path, english) -> None:
    path = training.write_setting(tmp_path, english, repeat=1, batch_size=256)
    notes: list[str] = []
    folder = trained(path, on_event=lambda event: notes.append(text_of(event)))
    assert any("only 1 steps" in note for note in notes)
    assert json.loads((folder / "lepmerge_train.json").read_text())["steps"] == 1


def test_unwritable_output(tmp_path: Path, english) -> None:
    """Root may write anywhere. So under root, the command runs as another user who can read its inputs."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        folder.chmod(0o755)
        path = training.write_setting(folder, english)
        (folder / "locked").mkdir(mode=0o555)
        assert pico.command("train", path, "--device", "cpu").exit_code == 0  # every module is imported by then
        for file in folder.rglob("*.*"):
            file.chmod(0o644)
        if os.getuid() == 0:
            os.seteuid(65534)
        try:
            result = pico.command("train", path, "--set", f"output={folder / 'locked' / 'out'}", "--device", "cpu")
        finally:
            os.seteuid(os.getuid())
    pico.assert_one_line_error(result, 1, "locked cannot be written")


def test_output_below_a_file(tmp_path: Path, english) -> None:
    path = training.write_setting(tmp_path, english)
    result = pico.command("train", path, "--set", f"output={tmp_path / 'held_out.txt' / 'out'}")
    pico.assert_one_line_error(result, 1, "held_out.txt")


def test_a_full_disk_in_mid_run_loses_nothing(tmp_path: Path, english) -> None:
    """The process may not write files larger than a limit. EFBIG then stands in for ENOSPC of a full disk."""
    path = slow_setting(tmp_path, english)
    limit = 12_000

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, "-m", "lepmerge", "train", str(path), "--device", "cpu", "--set", "data=small.txt"]
    (tmp_path / "small.txt").write_text("\n\n".join(pico.RUSSIAN * 3))
    done = subprocess.run(command, preexec_fn=limited, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert "is full" in error and "run the same command again" in error
    again = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    other = slow_setting(tmp_path / "other", english)
    shutil.copy(tmp_path / "small.txt", tmp_path / "other")
    assert (tmp_path / "out" / "metrics.jsonl").read_bytes() == (
        trained(other, f"data={tmp_path / 'other' / 'small.txt'}") / "metrics.jsonl"
    ).read_bytes()


def test_dry_run(tmp_path: Path, english) -> None:
    path = training.write_setting(tmp_path, english)
    before = pico.tree(tmp_path)
    result = pico.command("train", path, "--dry-run", "--json", "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert pico.tree(tmp_path) == before
    report = json.loads((trained(path) / "lepmerge_train.json").read_text())
    session = training.session_of(path)
    assert found["tokens"] == session.blocks.sources[0].tokens.num_tokens and found["tokens_are_exact"]
    assert found["steps"] == report["steps"]
    shown = pico.command("train", path, "--dry-run", "--device", "cpu").stdout
    for word in ("tokens", "steps", "memory", "FLOP"):
        assert word in shown


def test_overwrite(tmp_path: Path, english) -> None:
    path = training.write_setting(tmp_path, english)
    trained(path)
    with pytest.raises(OutputError, match="not empty.*--overwrite"):
        trained(path, "learning_rate=5e-3")
    trained(path, "learning_rate=5e-3", overwrite=True)
    assert json.loads((tmp_path / "out" / "lepmerge_train.json").read_text())["learning_rate"] == 5e-3
