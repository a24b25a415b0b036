"""Wrong uses of the commands: one line that names the remedy, the right exit code, nothing written."""

import shutil
from pathlib import Path

import paper_models
import pico
import pytest
import training
from safetensors.torch import load_file

FILES = {
    "recipe.yaml": "models: {instruct: base}\nsteps: []\noutput: {path: out}\n",
    "list.yaml": "- a\n- b\n",
    "broken.yaml": "models: {a\n",
    "twice.yaml": "start: a\nstart: b\n",
    "nomodels.yaml": "output: {path: out}\n",
    "unknown.yaml": "models: {instruct: base}\nstart: instrukt\noutput: {path: out}\n",
    "trained.yaml": "models: {instruct: base, adapted: {train: config.yaml}}\nsteps: []\noutput: {path: out}\n",
    "project.yaml": "commands: [run recipe.yaml]\n",
    "empty.txt": "",
    "cp1251.txt": "привет".encode("cp1251"),
    "utf16.txt": "привет".encode("utf-16"),
    "text.csv": "text\nx\n",
    "array.json": "[]",
    "array.jsonl": "[]\n",
    "chat.jsonl": '{"messages": []}\n',
    "number.jsonl": '{"text": 1}\n',
    "text.txt": "слово и слово\n",
}


def extend(
    *, corpus: str = "text.txt", model: str = "base", output: str = "new", options: tuple[str, ...] = ()
) -> list:
    return ["tokenizer", "extend", model, corpus, "--add", "1", "-o", output, *options]


USES: list[tuple[list[str], int, str]] = [
    # commands and options
    (["extend"], 2, "No such command"),
    (["tokenizer", "grow"], 2, "No such command"),
    (["run"], 2, "Missing argument"),
    (["run", "recipe.yaml", "--devise", "cpu"], 2, "--device"),
    (["run", "nowhere.yaml"], 2, "does not exist"),
    (["run", "base"], 2, "is a directory"),
    (["train", "nowhere.yaml"], 2, "does not exist"),
    (["compare", "base"], 2, "--text"),
    (["tokenizer", "extend", "base", "text.txt", "-o", "new"], 2, "--add or --vocab-size"),
    (["tokenizer", "extend", "base", "text.txt", "--add", "0", "-o", "new"], 2, "--add"),
    (["tokenizer", "train", "text.txt", "--type", "wordpiece", "--vocab-size", "9", "--like", "base", "-o", "new"], 2,
     "unigram"),
    (["tokenizer", "optimize", "base", "text.txt", "--keep", "120%", "--vocab-size", "9", "-o", "new"], 2, "50%"),
    (extend(options=("--limit", "much")), 2, "5GB"),
    # YAML
    (["run", "list.yaml"], 2, "keys with values"),
    (["run", "broken.yaml"], 2, "broken.yaml:2: not YAML"),
    (["run", "twice.yaml"], 2, "'start' occurs twice"),
    (["run", "nomodels.yaml"], 2, "models: this key is missing"),
    (["run", "unknown.yaml"], 2, "did you mean instruct?"),
    (["run", "config.yaml"], 2, "lepmerge train config.yaml"),
    (["plan", "config.yaml"], 2, "lepmerge train config.yaml"),
    (["train", "recipe.yaml"], 2, "lepmerge run recipe.yaml"),
    (["run", "recipe.yaml", "--set", "output.pth=x"], 2, "did you mean path?"),
    (["run", "recipe.yaml", "--set", "output.path"], 2, "KEY=VALUE"),
    (["run", "recipe.yaml", "--set", "extends=x.yaml"], 2, "name the file"),
    (["run", "recipe.yaml", "--set", "output.path=$LEPMERGE_UNSET/x"], 2, "LEPMERGE_UNSET"),
    (["run", "recipe.yaml", "--set", "output.dtype=float12"], 2, "float16"),
    (["train", "config.yaml", "--set", "learning_rate=7"], 2, "less than 1"),
    (["train", "config.yaml", "--set", "modle=base"], 2, "did you mean model?"),
    # models
    (["run", "recipe.yaml", "--set", "models.instruct=./bse"], 1, "did you mean base?"),
    (["inspect", "./nowhere"], 1, "no such folder"),
    (["inspect", "text.txt"], 1, "text.txt"),
    (["diff", "base", "./bas"], 1, "did you mean base?"),
    (["inspect", "someone/unreachable"], 1, "someone/unreachable"),
    (["run", "recipe.yaml", "--set", "output.path=base/out"], 1, "choose another output.path"),
    (["run", "recipe.yaml", "--device", "abacus"], 1, "auto, cpu, cuda"),
    # texts
    (extend(corpus="txt.txt"), 1, "did you mean text.txt?"),
    (extend(corpus="empty.txt"), 1, "the corpus is empty"),
    (extend(corpus="cp1251.txt"), 1, "iconv -f WINDOWS-1251 -t UTF-8"),
    (extend(corpus="utf16.txt"), 1, "iconv -f UTF-16 -t UTF-8"),
    (extend(corpus="text.csv"), 1, ".jsonl"),
    (extend(corpus="array.json"), 1, "jq -c '.[]'"),
    (extend(corpus="array.jsonl"), 1, "jq -c '.[]'"),
    (extend(corpus="chat.jsonl"), 1, "--column"),
    (extend(corpus="number.jsonl"), 1, "--column"),
    (extend(corpus="nobody/texts"), 1, "nobody/texts"),
    (extend(model="./bas"), 1, "did you mean base?"),
    (["tokenizer", "report", "base", "--text", "nowhere.txt"], 1, "no such file"),
    (["train", "config.yaml", "-q", "--set", "data=chat.jsonl"], 1, "the source's column:"),
    (["train", "config.yaml", "-q", "--set", "data=nowhere.txt"], 1, "no such file"),
    (["train", "config.yaml", "-q", "--set", "evaluate.data.ru=chat.jsonl"], 1, "evaluate.data.ru.column:"),
    # wrong order
    (["run", "trained.yaml"], 2, "--train"),
    (["train", "config.yaml", "-q", "--set", "model=./out"], 1, "no such folder"),
    (["compare", "base", "./out", "--text", "text.txt", "-q"], 1, "no such folder"),
    (["compare", "base", "--text", "text.txt", "--card"], 1, "the reference and another model"),
    (["chain", "nowhere"], 2, "lepmerge init MODEL FOLDER"),
    (["chain", "recipe.yaml"], 2, "lepmerge run recipe.yaml"),
    (["run", "project.yaml"], 2, "lepmerge chain project.yaml"),
    # projects
    (["init", "base", "new"], 1, "--base base"),
    (["init", "someone/unreachable", "new"], 1, "someone/unreachable"),
    (["init", "base", "new", "--language", "russian"], 2, "ISO 639-1"),
    (["init", "base", "new", "--memory", "much"], 2, "5GB"),
    (["init", "base", "new", "--tokens", "many"], 2, "10M"),
    # no space, no rights
    (["run", "recipe.yaml", "--set", "models.instruct=huge"], 1, "free some space"),
    (["run", "recipe.yaml", "--set", "output.path=text.txt/out"], 1, "choose another output"),
    (["inspect", "base", "--log-file", "/sys/log.txt"], 1, "/sys/log.txt cannot be written"),
    (["inspect", "base", "--log-file", "nowhere/log.txt"], 1, "nowhere/log.txt cannot be written"),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, english) -> Path:
    folder = tmp_path_factory.mktemp("uses")
    training.write_setting(folder, english)
    shutil.copytree(folder / "base", folder / "huge", ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = load_file(folder / "base/model.safetensors")
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    paper_models.save_hole(folder / "huge/model.safetensors", shapes | {"model.more.weight": (1_000_000, 2_000_000)})
    for name, data in FILES.items():
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder


@pytest.mark.parametrize(("arguments", "exit_code", "remedy"), USES, ids=[" ".join(use[0])[:60] for use in USES])
def test_a_wrong_use_says_in_one_line_what_to_do_and_writes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], exit_code: int, remedy: str
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.delenv("LEPMERGE_UNSET", raising=False)
    before = sorted(folder.rglob("*"))
    result = pico.command(*arguments)
    assert result.exit_code == exit_code and result.stdout == "", result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    *usage, error = result.stderr.splitlines()
    assert remedy in error and error.lower().startswith("error: "), result.stderr
    assert not usage or usage[0].startswith("Usage: "), result.stderr
    assert sorted(folder.rglob("*")) == before
