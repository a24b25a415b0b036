"""Files next to the weights: every form of chat template is carried over, other formats are left out with a note."""

import json
import shutil
from pathlib import Path

import pico
import pytest
from transformers import AutoTokenizer

MESSAGES = [{"role": "user", "content": "Hi"}]
TOOL = "TOOLS {{ messages[0]['content'] }}"


@pytest.fixture
def folder(tmp_path: Path, setting) -> Path:
    return Path(shutil.copytree(setting["instruct"], tmp_path / "instruct"))


@pytest.mark.parametrize("form", ["folder", "tokenizer_config"])
@pytest.mark.parametrize("steps", ["none", "swap"])
def test_named_chat_templates(tmp_path: Path, folder: Path, russian, form: str, steps: str) -> None:
    default = (folder / "chat_template.jinja").read_text()
    if form == "folder":
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates" / "tool_use.jinja").write_text(TOOL)
    else:
        (folder / "chat_template.jinja").unlink()
        path = folder / "tokenizer_config.json"
        named = [{"name": "default", "template": default}, {"name": "tool_use", "template": TOOL}]
        path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": named}))
    pico.save_tokenizer(russian, tmp_path / "tokenizer")
    swap = [{"op": "swap_vocabulary", "tokenizer": str(tmp_path / "tokenizer")}]
    recipe = tmp_path / "run" / "recipe.yaml"
    out = pico.run_recipe(tmp_path / "run", {"instruct": folder}, swap if steps == "swap" else [])
    before, after = (AutoTokenizer.from_pretrained(path) for path in (folder, out))
    assert after.chat_template == before.chat_template == {"default": default, "tool_use": TOOL}
    rendered = after.apply_chat_template(MESSAGES, chat_template="tool_use", tokenize=False)
    assert rendered == "TOOLS Hi"
    again = pico.command("run", recipe, "--device", "cpu")
    assert again.exit_code == 0 and "nothing was done" in again.stderr
    replaced = pico.command("run", recipe, "--device", "cpu", "--overwrite", "--set", "output.dtype=float32")
    assert replaced.exit_code == 0, replaced.stderr
    assert AutoTokenizer.from_pretrained(out).chat_template == before.chat_template


def test_a_changed_template_is_another_run(tmp_path: Path, folder: Path) -> None:
    (folder / "additional_chat_templates").mkdir()
    path = folder / "additional_chat_templates" / "tool_use.jinja"
    path.write_text(TOOL)
    pico.run_recipe(tmp_path / "run", {"instruct": folder}, [])
    path.write_text("other")
    result = pico.command("run", tmp_path / "run" / "recipe.yaml", "--device", "cpu")
    pico.assert_one_line_error(result, 1, "not empty")


def test_other_formats_and_folders_are_left_out_with_a_note(tmp_path: Path, folder: Path) -> None:
    (folder / "original").mkdir()
    for name in ("consolidated.safetensors", "pytorch_model.bin", "original/params.json"):
        (folder / name).write_bytes(b"x")
    for name in ("params.json", "preprocessor_config.json", "processor_config.json", "chat_template.json"):
        (folder / name).write_text('{"vocab_size": 403}')
    out = pico.run_recipe(tmp_path / "run", {"instruct": folder}, [])
    carried = {path.name for path in out.iterdir()}
    assert {"preprocessor_config.json", "processor_config.json", "chat_template.json"} <= carried
    left = ["consolidated.safetensors", "original/", "params.json", "pytorch_model.bin"]
    assert not carried & {name.strip("/") for name in left}
    (note,) = json.loads((out / "lepmerge_report.json").read_text())["notes"]
    assert note == f"left out, because nothing is read from it: {', '.join(left)}"
    assert note in (out / "README.md").read_text()
