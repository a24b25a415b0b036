"""`lora:` of a training: the steps against a plain loop with PEFT, the adapter as PEFT and lepmerge load it, resuming."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import training
from peft_adapters import quiet
from transformers import AutoModelForCausalLM

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
        found = model(
            input_ids=batch.id_BL, position_ids=batch.position_BL, use_cache=False, output_hidden_states=True
        )
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
    start = {key: matrix.detach().clone() for key, matrix in session.learner(1e-2).parameters.items()}
    tables, matrices = plain_loop(session, session.learner(1e-2), steps=STEPS)
    learner, losses = training.stepped(session, steps=STEPS)
    assert losses[-1] < losses[0]
    assert learner.parameters.keys() == start.keys() == tables.keys() | matrices.keys()
    for key, matrix in matrices.items():
        moved = (matrix - start[key]).abs().max()
        assert moved > 1e-3 and (learner.parameters[key] - matrix).abs().max() <= 2e-3 * moved, key
    for role, table in tables.items():
        moved = (table - session.setting.start.table(role).rows().float()).abs().max()
        assert moved > 1e-3 and (learner.tables[role].table_VD - table).abs().max() <= 2e-3 * moved, role
