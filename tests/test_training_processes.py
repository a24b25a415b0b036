"""Several processes train to the same result as one process, with a whole body in each or with a sharded one."""

import json
import shutil
import signal
import time
from pathlib import Path

import pico
import processes
import pytest
import training
from safetensors.torch import load_file

from lepmerge.training.config import load_train_config
from lepmerge.training.run import train
from lepmerge.training.state import load_checkpoint, save_checkpoint


def assert_same_training(first: Path, second: Path) -> None:
    """Assert that the outputs of two trainings are the same except for rounding."""
    metrics = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] for folder in (first, second)
    ]
    assert len(metrics[0]) == len(metrics[1]) > 5
    for ours, theirs in zip(*metrics, strict=True):
        assert ours.keys() == theirs.keys() and ours["step"] == theirs["step"]
        for key in ("loss", "grad_norm", "tokens"):
            assert ours.get(key, 0) == pytest.approx(theirs.get(key, 0), rel=1e-4)
        for name, bits in ours.get("bits_per_byte", {}).items():
            assert bits == pytest.approx(theirs["bits_per_byte"][name], rel=1e-5)
    (name,) = {"adapter_model.safetensors", "embeddings.safetensors"} & {path.name for path in first.iterdir()}
    weights = [load_file(folder / name) for folder in (first, second)]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        assert (tensor - weights[1][name]).abs().max() < 2e-3


@pytest.mark.parametrize(
    ("options", "variables"),
    [
        ({}, {}),
        pytest.param({"lora": {"rank": 2}}, {"ACCELERATE_USE_FSDP": "true"}, marks=pytest.mark.slow),
    ],
    ids=["whole", "lora, sharded by accelerate's configuration"],
)
def test_two_processes_train_what_one_does(tmp_path: Path, english, options, variables) -> None:
    path = training.write_setting(tmp_path, english, **options)
    processes.run_by_two("train", path, **variables)
    assert_same_training(tmp_path / "out", train(load_train_config(path, [f"output={tmp_path / 'alone'}"])))


@pytest.mark.slow
def test_a_sharded_training_loses_a_process_and_continues(tmp_path: Path, english) -> None:
    """With the rows of an odd vocabulary, and a last step of fewer blocks than processes."""
    options = {"batch_size": 3, "micro_batch": 1, "repeat": 12, "checkpoint_every": 1, "learning_rate": 1e-3}
    path = training.write_setting(tmp_path, english, **options)
    assert training.setting_of(path).start.num_rows % 2 == 1
    staging = tmp_path / ".out.lepmerge"
    checkpoint = staging / "train.safetensors"
    main, other = processes.started("train", path, "--shard", "-q")
    try:
        while not checkpoint.exists():
            assert main.poll() is None and other.poll() is None, main.communicate()[1]
            time.sleep(0.01)
        other.send_signal(signal.SIGKILL)
        _, errors = main.communicate(timeout=600)
    finally:
        main.kill()
        other.kill()
        other.communicate()
    assert main.returncode == 1
    (line,) = errors.splitlines()
    assert line.startswith("error: process 0 stops: another process of the training has ended") and "continues" in line
    session = training.session_of(path)
    learner = session.learner(1e-3)
    position = load_checkpoint(checkpoint, learner)
    assert 0 < position.step < session.steps
    save_checkpoint(tmp_path / "again", learner, position)
    assert (tmp_path / "again").read_bytes() == checkpoint.read_bytes()  # one process would have written the same file
    whole = train(load_train_config(path, [f"output={tmp_path / 'whole'}"]))
    shutil.copytree(staging, tmp_path / ".one.lepmerge")
    assert_same_training(train(load_train_config(path, [f"output={tmp_path / 'one'}"])), whole)
    processes.run_by_two("train", path, "--shard", "-q")
    assert_same_training(tmp_path / "out", whole)
    assert (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[1 : position.step] == (
        tmp_path / "one" / "metrics.jsonl"
    ).read_text().splitlines()[1 : position.step]


@pytest.mark.parametrize(
    ("shard", "variables", "what"),
    [(True, {}, "--shard needs"), (False, {"ACCELERATE_USE_FSDP": "true"}, "FSDP (in accelerate's configuration)")],
)
def test_one_process_cannot_shard(tmp_path: Path, english, monkeypatch, shard, variables, what) -> None:
    path = training.write_setting(tmp_path, english)
    before = pico.tree(tmp_path)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    result = pico.command("train", path, "--device", "cpu", *["--shard"] * shard)
    pico.assert_one_line_error(result, 1, what, "several processes", "accelerate launch")
    assert pico.tree(tmp_path) == before


def test_a_body_in_int8_cannot_be_sharded(tmp_path: Path, english) -> None:
    from dataclasses import replace

    from lepmerge.errors import TrainingError
    from lepmerge.training.group import Group
    from lepmerge.training.session import fitted

    setting = training.setting_of(training.write_setting(tmp_path, english, precision="int8"))
    with pytest.raises(TrainingError, match="cannot shard a body in int8: set precision to bf16"):
        fitted(setting, replace(Group(training.CPU), size=2, sharded=True))
