"""A student learns from its teacher: divergence and gradients in float64, one body, what a model learns from itself."""

import json
from pathlib import Path

import pico
import pytest
import torch
import torch.nn.functional as F
import training
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lepmerge.training.distill import SLAB_MATRICES, head_divergence
from lepmerge.training.loss import IGNORED, SLAB_BYTES
from lepmerge.training.teacher import same_body

STEPS = 3


@pytest.mark.parametrize("slab", [1, 3, 1000])
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_divergence_equals_float64_autograd(chunk: int, slab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SLAB_BYTES, "cpu", 4 * SLAB_MATRICES * 33 * slab)
    torch.manual_seed(0)
    student, teacher = (torch.randn(40, 8, dtype=torch.float64) for _ in range(2))
    table, weight = torch.randn(33, 8, dtype=torch.float64), torch.rand(40, dtype=torch.float64) * 20
    student.requires_grad_()
    log_q, log_p = ((hidden @ table.T).log_softmax(1) for hidden in (student, teacher))
    expected = (F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(1) * weight).sum()
    (expected * 0.3).backward()
    total, grad = head_divergence(student.detach(), teacher, table, weight, scale=0.3, chunk=chunk)
    assert torch.allclose(total, expected.detach(), rtol=1e-12)
    assert torch.allclose(grad, student.grad, atol=1e-13)
    single, grad = head_divergence(
        student.detach().float(), teacher.float(), table.float(), weight.float(), scale=0.3, chunk=chunk
    )
    assert torch.allclose(single, expected.detach(), rtol=1e-5)
    assert (grad.double() - student.grad).abs().max() < 1e-5 * student.grad.abs().max()


def plain_distillation(session, learner, *, steps: int) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """Return the tables and the terms of the loss after a plain torch loop: two whole models, full logits, autograd.

    It reads the batches' ids, positions and pairs, and nothing else of lepmerge.
    """
    config, setting = session.setting.config, session.setting
    student, teacher = (AutoModelForCausalLM.from_pretrained(m.folder) for m in (setting.base, setting.teacher))
    tables = {role: table.table_VD.clone().requires_grad_() for role, table in learner.tables.items()}
    rows_in, rows_out = tables["input_embeddings"], tables.get("output_embeddings", tables["input_embeddings"])
    spans = {role: slice(rows.start, rows.stop) for role, rows in setting.rows.items()}
    masters = {role: table.detach()[spans[role]].clone().requires_grad_() for role, table in tables.items()}
    optimizer = torch.optim.AdamW(masters.values(), lr=1.0, betas=config.betas, weight_decay=config.weight_decay)
    found = []
    for step in range(steps):
        batch = session.blocks.batch(learner.places(step))
        lesson = batch.lesson
        embedded = F.embedding(batch.id_BL, rows_in)
        hidden = student.model(inputs_embeds=embedded, position_ids=batch.position_BL, use_cache=False)[0]
        with torch.no_grad():
            of_teacher = teacher.model(input_ids=lesson.id_BT, position_ids=lesson.position_BT, use_cache=False)[0]
        pairs = hidden.flatten(0, 1)[lesson.student_P], of_teacher.flatten(0, 1)[lesson.teacher_P]
        log_q, log_p = ((part @ teacher.lm_head.weight.T).log_softmax(1) for part in pairs)
        divergence = (F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(1) * lesson.weight_P).sum()
        divergence = divergence / lesson.weight_P.sum()
        nats_N = F.cross_entropy((hidden @ rows_out.T).flatten(0, 1), batch.label_BL.flatten(), reduction="none")
        weight_N = torch.ones(len(nats_N))
        weight_N[lesson.student_P[lesson.weight_P > 1]] = config.distill.answer_label_weight
        weight_N[batch.label_BL.flatten() == IGNORED] = 0
        cross_entropy = (nats_N * weight_N).sum() / weight_N.sum()
        (config.distill.weight * divergence + cross_entropy).backward()
        found.append({"divergence": divergence.item(), "cross_entropy": cross_entropy.item()})
        for role, table in tables.items():
            masters[role].grad, table.grad = table.grad[spans[role]].clone(), None
        torch.nn.utils.clip_grad_norm_(masters.values(), config.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = learner.learning_rate(step)
        optimizer.step()
        with torch.no_grad():
            for role, table in tables.items():
                table[spans[role]] = masters[role]
    return {role: table.detach() for role, table in tables.items()}, found


@pytest.mark.parametrize(("tied", "label_weight"), [(False, 1), (False, 15), (True, 15)])
def test_steps_equal_a_plain_loop_with_two_models(tmp_path: Path, english, tied: bool, label_weight: float) -> None:
    distill = {"weight": 3, "answer_label_weight": label_weight}
    session = training.session_of(
        training.write_distillation(tmp_path, english, tied=tied, max_tokens=2000, distill=distill)
    )
    learner = session.learner(1e-2)
    expected, terms = plain_distillation(session, learner, steps=STEPS)
    for step in range(STEPS):
        metrics = learner.step(step, micro_batch=2, between=lambda: None)
        assert metrics.terms == pytest.approx(terms[step], rel=1e-4, abs=1e-6)
        loss = terms[step]["cross_entropy"] + 3 * terms[step]["divergence"]
        assert metrics.loss == pytest.approx(loss, rel=1e-4)
    for role, table in learner.tables.items():
        assert torch.allclose(table.table_VD, expected[role], atol=2e-5), role
        rows = session.setting.rows[role]
        start = session.setting.start.table(role).rows()
        outside = [*range(rows.start), *range(rows.stop, len(start))]
        assert outside and torch.equal(table.table_VD[outside], start[outside])
        assert not torch.equal(table.table_VD[rows.start : rows.stop], start[rows.start : rows.stop])


def test_a_model_learns_nothing_from_itself(tmp_path: Path, english) -> None:
    """With the same vocabulary, the hidden states are equal at every token, so the divergence is zero."""
    path = training.write_distillation(tmp_path, english, tokenizer=None, train={"rows": "all", "tables": "input"})
    session = training.session_of(path, "learning_rate=1e-30", "weight_decay=0")
    learner = session.learner(1e-30)
    before = learner.input.table_VD.clone()
    batch = session.blocks.batch(learner.places(0))
    assert batch.lesson is not None and len(batch.lesson.student_P) >= int((batch.label_BL != -100).sum())
    for step in range(2):
        metrics = learner.step(step, micro_batch=2, between=lambda: None)
        assert abs(metrics.terms["divergence"]) < 1e-6
    assert torch.equal(learner.input.table_VD, before)
    hidden_ND = learner.body(learner.body.embed(before, batch.id_BL), batch.position_BL).flatten(0, 1)
    total, grad_PD = learner._divergence(session.teacher, batch.lesson, hidden_ND, 1.0)
    assert abs(float(total)) < 1e-4 and float(grad_PD.abs().max()) < 1e-6


def test_teacher_and_student_share_a_body_only_where_it_is_the_same(tmp_path: Path, english) -> None:
    path = training.write_distillation(tmp_path, english)
    session = training.session_of(path)
    assert session.teacher is not None and session.teacher.body is session.body
    pico.save_model(tmp_path / "other", english, chat=True, dtype=torch.float32)
    assert same_body(session.setting.base, training.setting_of(path, f"teacher={tmp_path / 'other'}").teacher)
    weights = load_file(tmp_path / "other" / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] += 1
    save_file(weights, tmp_path / "other" / "model.safetensors", metadata={"format": "pt"})
    other = training.session_of(path, f"teacher={tmp_path / 'other'}")
    assert other.teacher is not None and other.teacher.body is not other.body
    learner, twin = other.learner(1e-2), session.learner(1e-2)
    expected, terms = plain_distillation(other, learner, steps=1)
    metrics = [part.step(0, micro_batch=4, between=lambda: None) for part in (learner, twin)]
    assert metrics[0].terms == pytest.approx(terms[0], rel=1e-4)
    assert metrics[0].terms["divergence"] != pytest.approx(metrics[1].terms["divergence"], rel=1e-3)


def test_the_weight_of_answers_is_set_on_the_command_line(tmp_path: Path, english) -> None:
    """A weight of 1 changes nothing, another one changes the cross entropy and the learned rows."""
    path = training.write_distillation(tmp_path, english, max_tokens=600, evaluate=None)
    found = {}
    for weight in (None, 1, 20):
        override = () if weight is None else ("--set", f"distill.answer_label_weight={weight}")
        folder = tmp_path / f"out-{weight}"
        done = pico.command("train", path, "--set", f"output={folder}", *override, "--device", "cpu", "-q")
        assert done.exit_code == 0, done.stderr
        found[weight] = [(folder / name).read_bytes() for name in ("metrics.jsonl", "embeddings.safetensors")]
    assert found[None] == found[1]
    assert all(ours != others for ours, others in zip(found[20], found[1], strict=True))
    refused = pico.command("train", path, "--set", "distill.answer_label_weight=0", "--device", "cpu")
    pico.assert_one_line_error(refused, 2, "answer_label_weight", "greater than 0")


def test_positions_before_answers_weigh_more(tmp_path: Path, english) -> None:
    weights = {"answer_weight": 7, "answer_label_weight": 5}
    path = training.write_distillation(tmp_path, english, distill=weights)
    session = training.session_of(path)
    places = session.blocks.order(0).tolist()
    batch, totals = session.blocks.batch(places), session.blocks.totals(places)
    lesson, label_N = batch.lesson, batch.label_BL.flatten()
    assert lesson is not None
    assert set(lesson.weight_P.tolist()) == {1.0, 7.0} and torch.equal(lesson.weight_P > 1, lesson.label_weight_P == 5)
    assert totals.pair_weight == pytest.approx(float(lesson.weight_P.sum()))
    weight_N = lesson.label_weights(len(label_N))
    assert set(weight_N.tolist()) == {1.0, 5.0}
    assert totals.num_labels == int((label_N != IGNORED).sum())
    assert totals.label_weight == pytest.approx(float(weight_N[label_N != IGNORED].sum()))
    begin, end = (session.setting.start.vocabulary.added[f"<|{name}|>"].id for name in ("assistant", "end"))
    is_paired_N = torch.zeros(len(label_N), dtype=torch.bool)
    is_paired_N[lesson.student_P] = True
    inside, num_answers = False, 0
    for place, (id, label) in enumerate(zip(batch.id_BL.flatten().tolist(), label_N.tolist(), strict=True)):
        inside = label != IGNORED and (inside or id == begin)
        if label != IGNORED and is_paired_N[place]:
            assert weight_N[place] == (5 if inside else 1)
        num_answers += inside and label == end
        inside = inside and label != end
    assert num_answers >= 12
    ends = session.setting.teacher.vocabulary.added["<|assistant|>"].id
    ids = lesson.id_BT.flatten()[lesson.teacher_P]
    assert bool((lesson.weight_P[ids == ends] == 7).all()) and int((ids == ends).sum()) > 4
    assert session.setting.teacher.vocabulary.added["<|user|>"].id in ids[lesson.weight_P == 1].tolist()


def test_report_card_and_plan_name_the_teacher(tmp_path: Path, english) -> None:
    path = training.write_distillation(tmp_path, english, max_tokens=1500)
    dry = json.loads(pico.command("train", path, "--dry-run", "--json", "--device", "cpu").stdout)
    session = training.session_of(path)
    taught = [len(source.lessons.token_T) for source in session.blocks.sources]
    own = [source.tokens.num_tokens for source in session.blocks.sources]
    assert [source["tokens"] for source in dry["sources"]] == own
    weighed = [sum(n * w for n, w in zip(part, (1, 0.5, 1), strict=True)) for part in (own, taught)]
    assert dry["teacher"]["tokens"] == round(1500 * weighed[1] / weighed[0]) > 1500
    assert dry["objective"] == "distill" and dry["memory"]["teacher"] > 0
    shown = pico.command("train", path, "--dry-run", "--device", "cpu").stdout
    assert f"teacher   {tmp_path / 'base'}: {dry['teacher']['tokens']:,} tokens" in shown and "\ndistill " in shown
    result = pico.command("train", path, "--device", "cpu", "--full", tmp_path / "full", "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["teacher"]["reference"] == "base" and report["divergence"]["last"] > 0
    assert [part["path"] for part in report["data"]] == ["corpus.jsonl", "corpus.jsonl", "chats.jsonl"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "to predict what base predicts, in the old vocabulary" in card
    assert f"Divergence {report['divergence']['first']:.4f} → {report['divergence']['last']:.4f}." in card
    assert (tmp_path / "full" / "chat_template.jinja").read_text() == pico.CHAT_TEMPLATE


@pytest.mark.parametrize(
    ("change", "exit_code", "parts"),
    [
        (["teacher=null"], 2, ["`objective: distill` and `teacher` need each other"]),
        (["objective=text"], 2, ["objective"]),
        (["teacher=narrow"], 1, ["hidden states of width 8", "of width 16"]),
        (["teacher=nowhere"], 1, ["nowhere"]),
        (["teacher=plain"], 1, ["teacher: ", "plain has no chat template"]),
        (["teacher=speaker"], 1, ["model: the chat template of", "is not that of the teacher"]),
        (["data=[{path: corpus.jsonl, prompt: no place}]"], 2, ["data.0", "{text}"]),
        (["data=[{path: corpus.jsonl, kind: chat}]"], 1, ["corpus.jsonl:1", "messages"]),
        (["packing=concatenate"], 2, ["packing: concatenate"]),
        (["distill.answer_wieght=2"], 2, ["answer_wieght", "did you mean answer_weight"]),
    ],
)
def test_faults(tmp_path: Path, english, monkeypatch, change: list[str], exit_code: int, parts: list[str]) -> None:
    path = training.write_distillation(tmp_path, english)
    pico.save_model(tmp_path / "narrow", english, width=8, chat=True)
    pico.save_model(tmp_path / "plain", english)
    pico.save_model(tmp_path / "speaker", english, chat=True)
    (tmp_path / "speaker" / "chat_template.jinja").write_text("{{ messages[0].content }}")
    monkeypatch.chdir(tmp_path)
    arguments = [part for value in change for part in ("--set", value)]
    pico.assert_one_line_error(pico.command("train", path, "--device", "cpu", *arguments), exit_code, *parts)
