"""Steps of training against a plain torch loop: which rows move, and how far; what is frozen keeps its bits."""

from pathlib import Path

import pytest
import torch
import training
from transformers import AutoModelForCausalLM

from lepmerge.errors import RecipeError, VocabularyError
from lepmerge.training.config import load_train_config
from lepmerge.training.setting import prepare

STEPS = 6
CASES = [(tied, rows, tables) for tied in (False, True) for rows in ("all", "new") for tables in ("both",)]
CASES += [(False, rows, tables) for rows in ("all", "new") for tables in ("input", "output")]


def same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    return torch.equal(first.view(torch.uint8), second.view(torch.uint8))


@pytest.mark.parametrize(("tied", "rows", "tables"), CASES)
@pytest.mark.parametrize("packing", ["documents", "concatenate"])
def test_tables_equal_a_plain_training(tmp_path: Path, english, tied: bool, rows: str, tables: str, packing: str):
    train = {"rows": rows, "tables": tables}
    path = training.write_setting(tmp_path, english, tied=tied, train=train, packing=packing, max_tokens=2000)
    session = training.session_of(path)
    config = session.setting.config
    expected = training.plain_training(config, session, session.learner(config.rates[0]), steps=STEPS)
    start = session.learner(config.rates[0])
    learner, losses = training.stepped(session, steps=STEPS)
    assert losses[-1] < losses[0]
    for role, table in learner.tables.items():
        moved = (expected[role] - start.tables[role].table_VD).abs().max()
        assert (table.table_VD - expected[role]).abs().max() <= 1e-3 * moved + 1e-6
        trained = session.setting.rows[role]
        assert moved > 1e-3 if trained else moved == 0
        frozen = torch.ones(len(table.table_VD), dtype=torch.bool)
        frozen[trained.start : trained.stop] = False
        assert same_bits(table.table_VD[frozen], start.tables[role].table_VD[frozen])
        assert not trained or not same_bits(table.table_VD[~frozen], start.tables[role].table_VD[~frozen])


@pytest.mark.parametrize("tied", [False, True])
def test_bf16_masters_follow_float32(tmp_path: Path, english, tied: bool) -> None:
    """With a body in bfloat16 the losses stay near those in float32, and small steps are not lost to rounding."""
    path = training.write_setting(tmp_path, english, tied=tied, max_tokens=2000, learning_rate=1e-4, weight_decay=0.0)
    _, exact = training.stepped(training.session_of(path), steps=STEPS)
    session = training.session_of(path, "precision=bf16")
    start = session.learner(1e-4).output.master_RD.detach().clone()
    learner, losses = training.stepped(session, steps=STEPS)
    assert losses == pytest.approx(exact, rel=5e-3)
    moved = (learner.output.master_RD != start).double().mean()
    assert moved > 0.95
    assert same_bits(learner.output.table_VD, learner.output.master_RD.detach().bfloat16())


def test_the_body_keeps_its_bits(tmp_path: Path, english) -> None:
    path = training.write_setting(tmp_path, english, max_tokens=1000)
    session = training.session_of(path)
    before = {name: tensor.clone() for name, tensor in session.body.state_dict().items() if not tensor.is_meta}
    training.stepped(session, steps=3)
    after = session.body.state_dict()
    assert before and all(same_bits(tensor, after[name]) for name, tensor in before.items())
    model = AutoModelForCausalLM.from_pretrained(session.setting.base.folder).state_dict()
    stored = {name: model[name.replace("layers.", "model.", 1)] for name in before if "rotary" not in name}
    assert len(stored) > 10 and all(same_bits(before[name], tensor) for name, tensor in stored.items())


@pytest.mark.parametrize("micro_batch", [1, 3, 4])
def test_micro_batches_change_nothing_but_rounding(tmp_path: Path, english, micro_batch: int) -> None:
    session = training.session_of(training.write_setting(tmp_path, english, max_tokens=1000))
    learner, losses = training.stepped(session, steps=3)
    other, others = training.stepped(session, steps=3, micro_batch=micro_batch)
    assert others == pytest.approx(losses, rel=1e-6)
    assert torch.allclose(learner.input.table_VD, other.input.table_VD, atol=1e-5)


def test_what_stops_a_step_leaves_everything_as_it_was(tmp_path: Path, english) -> None:
    session = training.session_of(training.write_setting(tmp_path, english, max_tokens=1000))
    learner, _ = training.stepped(session, steps=2)
    before = learner.input.table_VD.clone()
    calls = iter([None, KeyboardInterrupt])

    def between() -> None:
        if (error := next(calls)) is not None:
            raise error

    with pytest.raises(KeyboardInterrupt):
        learner.step(2, micro_batch=2, between=between)
    assert same_bits(learner.input.table_VD, before)
    learner.forget_gradients()
    learner.step(2, micro_batch=2, between=lambda: None)
    undisturbed, _ = training.stepped(session, steps=3)
    assert same_bits(learner.input.table_VD, undisturbed.input.table_VD)


def test_schedule(tmp_path: Path, english) -> None:
    session = training.session_of(training.write_setting(tmp_path, english, max_tokens=4000, warmup_steps=4))
    learner = session.learner(1e-2)
    rates = [learner.learning_rate(step) for step in range(session.steps + 1)]
    assert rates[:4] == pytest.approx([2.5e-3, 5e-3, 7.5e-3, 1e-2])
    assert rates[4] == pytest.approx(1e-2) and rates[-1] == pytest.approx(0, abs=1e-12)
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_new_rows_must_be_one_range(tmp_path: Path, english, russian) -> None:
    path = training.write_setting(tmp_path, english, new=russian, train={"rows": "new"})
    with pytest.raises(VocabularyError, match="scattered.*rows: all"):
        prepare(load_train_config(path))
    path = training.write_setting(tmp_path / "same", english, new=english, train={"rows": "new"})
    with pytest.raises(VocabularyError, match="no token that the model lacks"):
        prepare(load_train_config(path))


def test_tied_tables_are_trained_together(tmp_path: Path, english) -> None:
    path = training.write_setting(tmp_path, english, tied=True, train={"tables": "input"})
    with pytest.raises(RecipeError, match="tied.*use both"):
        prepare(load_train_config(path))


def test_activation_checkpointing_computes_the_same(tmp_path: Path, english) -> None:
    path = training.write_setting(tmp_path, english, max_tokens=1000)
    learner, losses = training.stepped(training.session_of(path), steps=3)
    saving, others = training.stepped(training.session_of(path, "activation_checkpointing=true"), steps=3)
    assert others == pytest.approx(losses, rel=1e-6)
    assert torch.allclose(learner.input.table_VD, saving.input.table_VD, atol=1e-5)
