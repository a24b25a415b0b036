"""`lora:` of a training: steps against a plain loop with PEFT, the output in PEFT and in recipes, resuming, faults."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pico
import pytest
import torch
import torch.nn.functional as F
import training
from peft_adapters import loaded, logits, quiet, with_peft
from transformers import AutoModelForCausalLM

from lepmerge.errors import Stopped
from lepmerge.training.config import load_train_config
from lepmerge.training.events import StepDone, TrainingEvent
from lepmerge.training.held_out import bits_per_byte
from lepmerge.training.run import train

STEPS = 4
LORA = {"rank": 3, "alpha": 5, "modules": ["q_proj", "down_proj"]}
WRITERS = {
    "text": training.write_setting,
    "distill": training.write_distillation,
    "chat": training.write_chat_training,
}


def plain_loop(session, learner, *, steps: int):
    """Return the tables and matrices after a plain loop with PEFT: whole models, autograd, full logits, AdamW.

    It reads the batches and the initial values from lepmerge, and nothing else.
    """
    from peft import LoraConfig, get_peft_model

    config, setting = session.setting.config, session.setting
    with quiet():
        student = AutoModelForCausalLM.from_pretrained(setting.base.folder)
        student.resize_token_embeddings(setting.start.num_rows, mean_resizing=False)
    for role, module in (("input", student.get_input_embeddings()), ("output", student.get_output_embeddings())):
        table = learner.tables.get(f"{role}_embeddings", learner.input)
        module.weight.data.copy_(table.table_VD)
    modules = config.lora.modules
    if config.lora.layers == "first_last":
        modules = [f"model.layers.{number}.{part}" for number in (0, -1 + student.config.num_hidden_layers)
                   for part in ("self_attn.q_proj", "mlp.down_proj")]  # fmt: skip
    with quiet():
        model = get_peft_model(
            student, LoraConfig(r=config.lora.rank, lora_alpha=config.lora.alpha, target_modules=modules)
        )
    matrices = {n.replace(".default.", "."): p for n, p in model.named_parameters() if p.requires_grad}
    assert matrices.keys() == learner.body.adapter.parameters.keys()
    for name, matrix in matrices.items():
        matrix.data.copy_(learner.body.adapter.parameters[name].data)
    tables = {}
    for role, rows in setting.rows.items():
        module = student.get_input_embeddings() if role == "input_embeddings" else student.get_output_embeddings()
        if rows:
            tables[role] = module.weight.requires_grad_()
    optimizer = torch.optim.AdamW(
        [*tables.values(), *matrices.values()], lr=1.0, betas=config.betas, weight_decay=config.weight_decay
    )
    teacher = setting.teacher and AutoModelForCausalLM.from_pretrained(setting.teacher.folder)
    for step in range(steps):
        batch = session.blocks.batch(learner.places(step))
        found = model(input_ids=batch.id_BL, position_ids=batch.position_BL, use_cache=False, output_hidden_states=True)
        loss = F.cross_entropy(found.logits.flatten(0, 1), batch.label_BL.flatten())
        if teacher:
            lesson = batch.lesson
            with torch.no_grad():
                taught = teacher.model(input_ids=lesson.id_BT, position_ids=lesson.position_BT, use_cache=False)[0]
            hidden = found.hidden_states[-1].flatten(0, 1)[lesson.student_P]
            pair = hidden, taught.flatten(0, 1)[lesson.teacher_P]
            log_q, log_p = ((part @ teacher.lm_head.weight.T).log_softmax(1) for part in pair)
            divergence = (F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(1) * lesson.weight_P).sum()
            loss = loss + config.distill.weight * divergence / lesson.weight_P.sum()
        optimizer.zero_grad()
        loss.backward()
        frozen = {}
        for role, table in tables.items():
            rows = setting.rows[role]
            mask = torch.ones(len(table), dtype=torch.bool)
            mask[rows.start : rows.stop] = False
            table.grad[mask] = 0
            frozen[role] = mask, table.detach()[mask].clone()
        torch.nn.utils.clip_grad_norm_([*tables.values(), *matrices.values()], config.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = learner.learning_rate(step)
        optimizer.step()
        for role, (mask, before) in frozen.items():
            tables[role].data[mask] = before
    return tables, matrices


@pytest.mark.parametrize(
    ("objective", "tied", "train", "layers"),
    [
        ("text", False, {"rows": "all"}, "all"),
        ("text", True, {"rows": "all"}, "first_last"),
        ("text", False, {"tables": "none"}, "all"),
        ("chat", False, {"tables": "output"}, "all"),
        ("distill", False, {"rows": "new"}, "first_last"),
        ("distill", True, {"rows": "new"}, "all"),
    ],
)
def test_steps_equal_a_plain_loop_with_peft(tmp_path: Path, english, objective, tied, train, layers) -> None:
    options = {"tied": tied, "train": train, "max_tokens": 2000, "lora": {**LORA, "layers": layers}}
    session = training.session_of(WRITERS[objective](tmp_path, english, **options))
    start = {key: part.parameter.detach().clone() for key, part in session.learner(1e-2).trainables.items()}
    tables, matrices = plain_loop(session, session.learner(1e-2), steps=STEPS)
    learner, losses = training.stepped(session, steps=STEPS)
    assert losses[-1] < losses[0]
    assert learner.trainables.keys() == start.keys() == tables.keys() | matrices.keys()
    for key, matrix in matrices.items():
        moved = (matrix - start[key]).abs().max()
        assert moved > 1e-3 and (learner.trainables[key].parameter - matrix).abs().max() <= 2e-3 * moved, key
    for role, table in tables.items():
        moved = (table - session.setting.start.table(role).rows().float()).abs().max()
        assert moved > 1e-3 and (learner.tables[role].table_VD - table).abs().max() <= 2e-3 * moved, role


def trained(path: Path, *overrides: str, **options) -> Path:
    return train(load_train_config(path, overrides), **options)


@pytest.mark.parametrize(
    ("tied", "options"),
    [
        (False, {"train": {"rows": "new"}}),
        (True, {"train": {"rows": "new"}}),
        (False, {"train": {"tables": "output"}, "tokenizer": None}),
        (False, {"train": {"tables": "none"}, "tokenizer": None}),
    ],
)
def test_peft_and_lepmerge_load_the_output(tmp_path: Path, english, tied: bool, options) -> None:
    """Both compute the logits with which the training ended, and so does the full model."""
    path = training.write_setting(tmp_path, english, tied=tied, lora=LORA, max_tokens=1500, **options)
    result = pico.command("train", path, "--device", "cpu", "--full", tmp_path / "full", "--json")
    assert result.exit_code == 0, result.stderr
    bits = json.loads(result.stdout)["bits_per_byte"]
    assert bits["last"]["ru"] < bits["first"]["ru"]
    full = loaded(tmp_path / "full")
    base, num_rows = tmp_path / "base", full.config.vocab_size
    with_adapter = with_peft(base, tmp_path / "out", num_rows=num_rows)
    assert torch.allclose(logits(with_adapter), logits(full), atol=1e-5)
    assert not torch.allclose(logits(loaded(base))[..., :300], logits(full)[..., :300], atol=1e-2)
    assert full.config.tie_word_embeddings is tied
    merged = pico.run_recipe(tmp_path / "recipe", {"instruct": f"{base}+{tmp_path / 'out'}"}, [])
    assert pico.contents(merged)["model.safetensors"] == pico.contents(tmp_path / "full")["model.safetensors"]
    session = training.session_of(path, f"model={tmp_path / 'full'}", "tokenizer=null", "lora=null", "train={}")
    assert bits_per_byte(session.learner(1e-3), session.held_out)["ru"] == pytest.approx(bits["last"]["ru"], rel=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_teacher_of_the_same_body_does_not_move(tmp_path: Path, english, checkpointing: bool) -> None:
    options = {"lora": {**LORA, "dropout": 0.5}, "activation_checkpointing": checkpointing}
    session = training.session_of(training.write_distillation(tmp_path, english, **options))
    teacher, learner = session.teacher, session.learner(1e-2)
    assert teacher is not None and teacher.body is session.body
    batch = session.blocks.batch(learner.places(0))
    lesson = batch.lesson
    assert lesson is not None

    def hidden() -> tuple[torch.Tensor, torch.Tensor]:
        taught = teacher.hidden(lesson.id_BT, lesson.position_BT)
        with torch.no_grad():
            embedded = learner.body.embed(teacher.input_VD, lesson.id_BT)
            return taught, learner.body(embedded, lesson.position_BT)

    before = hidden()
    for step in range(3):
        learner.step(step, micro_batch=2, between=lambda: None)
    after = hidden()
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[0], before[1]) and (after[1] - before[1]).abs().max() > 1e-2
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(after, hidden(), strict=True))  # no dropout at rest
    moved = {key: part.parameter.detach().clone() for key, part in learner.trainables.items()}
    again, _ = training.stepped(session, steps=3)  # a new learner begins with a new adapter
    assert all(torch.equal(part.parameter, moved[key]) for key, part in again.trainables.items())


def test_interrupted_and_resumed_gives_the_same_bytes(tmp_path: Path, english) -> None:
    """With dropout, whose seeds follow from the step."""
    path = training.write_setting(tmp_path, english, lora={**LORA, "dropout": 0.3}, max_tokens=1500)

    def stop(event: TrainingEvent) -> None:
        if isinstance(event, StepDone) and event.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped, match="after step 3"):
        trained(path, on_event=stop)
    resumed, other = trained(path), trained(path, f"output={tmp_path / 'other'}")
    ours, theirs = (pico.contents(folder) for folder in (resumed, other))
    for name in ("adapter_model.safetensors", "metrics.jsonl", "README.md"):
        assert ours[name] == theirs[name], name
    plain = trained(path, "lora.dropout=0", f"output={tmp_path / 'plain'}")
    assert pico.contents(plain)["adapter_model.safetensors"] != ours["adapter_model.safetensors"]


def test_a_recipe_takes_base_tables_and_adapter(tmp_path: Path, english) -> None:
    """`{train: …}` is the base with the adapter, and the plan of an unfinished training has the same shapes."""
    training.write_setting(tmp_path, english, lora=LORA, max_tokens=1500)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("models: {m: {train: config.yaml}}\nstart: m\noutput: {path: merged}\n")
    before = json.loads(pico.command("plan", recipe, "--json").stdout)
    sizes = {"modules": 4, "parameters": 3 * 2 * (16 + 16 + 32 + 16)}
    assert before["trainings"]["m"]["lora"] == sizes
    result = pico.command("run", recipe, "--train", "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    after = json.loads(pico.command("plan", recipe, "--json").stdout)
    assert [file["bytes"] for file in after["files"]] == [file["bytes"] for file in before["files"]]
    merged = with_peft(tmp_path / "base", tmp_path / "out", num_rows=after["vocabulary_rows"]["after"])
    assert torch.allclose(logits(loaded(tmp_path / "merged")), logits(merged), atol=1e-5)
    report = json.loads((tmp_path / "out" / "lepmerge_train.json").read_text())
    assert report["lora"] == sizes
    card = (tmp_path / "out" / "README.md").read_text()
    assert "library_name: peft" in card and "LoRA of rank 3, alpha 5: 4 modules, 480 parameters" in card
    refused = pico.command("inspect", tmp_path / "out")
    assert refused.exit_code == 0 and "rank" in refused.stdout


def test_dry_run_counts_the_adapter(tmp_path: Path, english) -> None:
    path = training.write_setting(tmp_path, english, lora={"rank": 4, "modules": "all-linear"})
    dry = json.loads(pico.command("train", path, "--dry-run", "--json", "--device", "cpu").stdout)
    inputs = 2 * (4 * 16 + 2 * 16 + 32)  # of q, k, v, o, gate, up and down in two layers
    outputs = 2 * (4 * 16 + 2 * 32 + 16)
    assert dry["lora"] == {"modules": 14, "parameters": 4 * (inputs + outputs)}
    assert dry["memory"]["lora"] == 16 * 4 * (inputs + outputs) + 4 * 2 * 48 * (inputs + outputs + 14 * 4)
    shown = pico.command("train", path, "--dry-run", "--device", "cpu").stdout
    assert f"lora      14 modules, {4 * (inputs + outputs):,} parameters" in shown


@pytest.mark.parametrize(
    ("lora", "exit_code", "parts"),
    [
        ("{rnak: 3}", 2, ["lora.rnak", "did you mean rank"]),
        ("{rank: 0}", 2, ["lora.rank"]),
        ("{layers: first}", 2, ["lora.layers"]),
        ("{layers: [0, 7]}", 2, ["lora.layers", "no layer 7", "0 to 1"]),
        ("{modules: [query]}", 1, ["lora: PEFT cannot add an adapter to LlamaForCausalLM", "query"]),
        ("{modules: [q_proj, lm_head]}", 2, ["lora.modules", "lm_head is an embedding table", "train.tables"]),
        ("{modules: [input_layernorm]}", 1, ["lora: PEFT cannot", "LlamaRMSNorm"]),
        ("null", 2, ["train.tables: none", "lora"]),
    ],
)
def test_faults(tmp_path: Path, english, lora: str, exit_code: int, parts: list[str]) -> None:
    tables = "none" if lora == "null" else "both"
    path = training.write_setting(tmp_path, english, train={"tables": tables}, lora={})
    arguments = ("train", path, "--device", "cpu", "--set", f"lora={lora}")
    for more in ((), ("--dry-run",)):
        pico.assert_one_line_error(pico.command(*arguments, *more), exit_code, *parts)
    assert not (tmp_path / "out").exists() and not (tmp_path / ".out.lepmerge").exists()


def test_peft_is_missing(tmp_path: Path, english, monkeypatch) -> None:
    path = training.write_setting(tmp_path, english, lora={})
    monkeypatch.setitem(sys.modules, "peft", None)
    result = pico.command("train", path, "--device", "cpu")
    pico.assert_one_line_error(result, 2, "lora: ", "pip install 'lepmerge[lora]'")


@pytest.mark.parametrize("precision", ["bf16", "nf4"])
def test_only_lepmerge_speaks(tmp_path: Path, english, precision: str) -> None:
    """PEFT imports bitsandbytes, and so does a quantized body. It warns about kernels that it cannot download."""
    if precision != "bf16":
        pytest.importorskip("bitsandbytes")
    path = training.write_setting(tmp_path, english, lora={"rank": 2}, max_tokens=500, precision=precision)
    command = [sys.executable, "-m", "lepmerge", "train", path, "--device", "cpu", "-q"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("precision", ["bf16", "int8", "nf4"])
def test_the_matrices_are_float32_whatever_the_body_is(tmp_path: Path, english, precision: str) -> None:
    """With small steps, bfloat16 matrices would lose most updates to rounding."""
    if precision != "bf16":
        pytest.importorskip("bitsandbytes")
    options = {"lora": {**LORA, "modules": "all-linear"}, "max_tokens": 1500, "learning_rate": 1e-4, "weight_decay": 0}
    path = training.write_setting(tmp_path, english, **options)
    _, exact = training.stepped(training.session_of(path), steps=3)
    session = training.session_of(path, f"precision={{body: {precision}}}")
    before = {key: part.parameter.detach().clone() for key, part in session.learner(1e-4).trainables.items()}
    learner, losses = training.stepped(session, steps=3)
    assert losses == pytest.approx(exact, rel=5e-3)
    assert len(learner.body.adapter.parameters) == 2 * 14
    for key, matrix in learner.body.adapter.parameters.items():
        assert matrix.dtype == torch.float32 and (matrix != before[key]).double().mean() > 0.9, key
