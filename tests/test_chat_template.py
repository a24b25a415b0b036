"""`output.chat_template`: the template of another model or of a file, tried out by the plan."""

import json
import shutil
from pathlib import Path

import pico
import pytest
import yaml
from transformers import AutoTokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
)
MESSAGES = [{"role": "user", "content": "Hi"}]


def recipe(folder: Path, setting: dict[str, Path], template: str, *, start: str = "base", **output) -> Path:
    folder.mkdir(exist_ok=True)
    models = {name: str(setting[name]) for name in ("base", "instruct")}
    plain = {"models": models, "start": start, "output": {"path": "out", "chat_template": template, **output}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(plain))
    return folder / "recipe.yaml"


def run(path: Path, *options: str) -> tuple[Path, list[str]]:
    done = pico.command("run", path, "--device", "cpu", *options)
    assert done.exit_code == 0, done.stderr
    out = path.parent / "out"
    return out, json.loads((out / "lepmerge_report.json").read_text())["notes"]


def test_the_template_of_another_model_with_its_named_ones(tmp_path: Path, setting) -> None:
    chat = Path(shutil.copytree(setting["instruct"], tmp_path / "chat"))
    (chat / "additional_chat_templates").mkdir()
    (chat / "additional_chat_templates" / "tool_use.jinja").write_text("TOOLS")
    out, notes = run(recipe(tmp_path, {**setting, "instruct": chat}, "instruct"))
    assert AutoTokenizer.from_pretrained(out).chat_template == {"default": pico.CHAT_TEMPLATE, "tool_use": "TOOLS"}
    (note,) = notes
    assert (
        "the template of instruct writes <|user|>, <|assistant|>, <|end|>, which the result's vocabulary lacks" in note
    )


@pytest.mark.parametrize("place", ["file", "tokenizer_config"])
def test_the_template_of_a_file_replaces_every_other_one(tmp_path: Path, setting, place: str) -> None:
    start = Path(shutil.copytree(setting["instruct"], tmp_path / "start"))
    if place == "tokenizer_config":
        path = start / "tokenizer_config.json"
        config = {**json.loads(path.read_text()), "chat_template": (start / "chat_template.jinja").read_text()}
        (start / "chat_template.jinja").unlink()
        path.write_text(json.dumps(config))
    (tmp_path / "own.jinja").write_text(CHATML)
    path = recipe(tmp_path, {**setting, "instruct": start}, "own.jinja", start="instruct")
    planned = pico.command("plan", path)
    assert "own.jinja writes <|im_start|>, <|im_end|>, which" in planned.stdout, planned.stderr
    out, _ = run(path)
    loaded = AutoTokenizer.from_pretrained(out)
    assert loaded.chat_template == CHATML
    assert loaded.apply_chat_template(MESSAGES, tokenize=False) == "<|im_start|>user\nHi<|im_end|>"
    assert "chat_template" not in json.loads((out / "tokenizer_config.json").read_text())
    (tmp_path / "own.jinja").write_text(pico.CHAT_TEMPLATE)
    pico.assert_one_line_error(pico.command("run", path, "--device", "cpu"), 1, "not empty")
    _, notes = run(path, "--overwrite")
    assert notes == []


@pytest.mark.parametrize(
    ("template", "text", "parts"),
    [
        ("instrut", "", ["recipe.yaml:", "output.chat_template", "unknown model 'instrut'", "did you mean instruct?"]),
        ("base", "", ["base", "has no chat template", "another model or a file"]),
        ("on.jinja", "x", ["does not exist", "did you mean own.jinja?"]),
        ("own.jinja", "{% for %}", ["own.jinja does not render", "Expected"]),
        ("own.jinja", "{{ raise_exception('only system') }}", ["does not render a chat", "only system"]),
        ("own.jinja", "{{ messages[0]['content'] + 1 }}", ["own.jinja does not render"]),
    ],
)
def test_a_template_that_cannot_be_used_is_one_line(tmp_path: Path, setting, template: str, text: str, parts) -> None:
    (tmp_path / "own.jinja").write_text(text)
    pico.assert_one_line_error(pico.command("plan", recipe(tmp_path, setting, template)), 2, *parts)


def test_a_gguf_output_keeps_the_template_of_its_body(tmp_path: Path, setting) -> None:
    path = recipe(tmp_path, setting, "instruct", body="x.gguf", path="out.gguf")
    pico.assert_one_line_error(pico.command("plan", path), 2, "chat_template belongs to a safetensors output")
