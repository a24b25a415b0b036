"""What other commands than `run` refuse: one line before any computing, and not a byte written."""

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import gguf_models
import pico
import pytest
import torch
import training
from safetensors.torch import load_file, save_file

HEAD = "lm_head.weight"
PROMPT = '{"messages": [{"role": "user", "content": "x"}]}\n'
FILES: dict[str, str | bytes] = {
    "empty.txt": "",
    "short.txt": "слово и слово\n",
    "text.txt": "\n\n".join(pico.RUSSIAN * 10),
    "cp1251.txt": "привет".encode("cp1251"),
    "rows.jsonl": '{"body": "x"}\n',
    "prompts.jsonl": PROMPT,
    "answers.jsonl": '{"messages": [{"role": "user", "content": "x"}], "answer": "y"}\n',
    "long.jsonl": json.dumps({"messages": [{"role": "user", "content": "x " * 200}], "answer": "y"}) + "\n",
    "bad.jsonl": '{"messages": []}\n',
    "system.jsonl": '{"messages": [{"role": "system", "content": "x"}]}\n',
    "grader.txt": "Grade {prompt}",
    "wordings.json": "[]",
    "mine.html": "<p>mine</p>",
    "not.gguf": "GGML",
    "full/notes.txt": "mine",
    "full/notes.csv": "mine",
    "broken.txt.gz": b"\x1f\x8b\x08\x00 not compressed",
    "broken.parquet": b"PAR1 nothing PAR1",
    "empty.gguf": "",
    "part-00001-of-00002.gguf": "GGUF",
    "shots.json": json.dumps({"results": {"darumeru_parus": {"score,none": 0.5}}, "n-shot": {"darumeru_parus": "x"}}),
    "deep.yaml": "models: " + "[" * 5000,
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, english, setting) -> Path:
    """A training, an instruct model, and files that are wrong in many ways."""
    folder = tmp_path_factory.mktemp("inputs")
    training.write_setting(folder, english)
    shutil.copytree(setting["instruct"], folder / "instruct")
    shutil.copytree(setting["adapted"], folder / "adapted")
    pico.save_model(folder / "tied", english, tied=True)
    pico.save_model(folder / "wide", english, width=32)
    pico.save_model(folder / "short", english, chat=True)
    _edit(folder / "short/config.json", max_position_embeddings=16)
    pico.save_model(folder / "quantized", english)
    _edit(folder / "quantized/config.json", quantization_config={"quant_method": "gptq"})
    pico.save_tokenizer(pico.unigram(pico.RUSSIAN, 90), folder / "unigram")
    pico.save_model(folder / "unigram_model", pico.unigram(pico.RUSSIAN, 90))
    pico.save_tokenizer(pico.bpe_of([], letters=["a", "b"], unk_token="<unk>"), folder / "unknown")
    lacking = json.loads((folder / "unknown/tokenizer.json").read_text())["model"] | {"unk_token": "nothing"}
    _edit(folder / "unknown/tokenizer.json", model=lacking)
    gguf_models.save_gguf(folder / "base", folder / "base.gguf")
    shutil.copytree(folder / "base", folder / "narrow_head")
    _edit_tensors(folder / "narrow_head", lambda tensors: {**tensors, HEAD: tensors[HEAD][:, :8].contiguous()})
    shutil.copytree(pico.split(Path(shutil.copytree(folder / "base", folder / "shards"))), folder / "twice")
    tensors = load_file(folder / "base/model.safetensors")
    for path in (folder / "twice").glob("*.safetensors"):
        save_file({**load_file(path), HEAD: tensors[HEAD]}, path)
    (folder / "adapter").mkdir()
    (folder / "adapter/adapter_config.json").write_text('{"peft_type": "LORA"}')
    for name, data in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder


def _edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def _edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def refused(monkeypatch: pytest.MonkeyPatch, folder: Path, command: str, part: str) -> tuple[int, str]:
    """Run a command in the folder; assert that it refuses in one line and leaves every byte; return code and line."""
    monkeypatch.chdir(folder)
    monkeypatch.delenv("LEPMERGE_UNSET", raising=False)
    before = pico.tree(folder)
    result = pico.command(*shlex.split(command))
    assert isinstance(result.exception, SystemExit) and result.exit_code in (1, 2), (result.exception, result.output)
    assert result.stdout == "", "the command showed something before it refused"
    *usage, error = result.stderr.splitlines()
    assert error.lower().startswith("error: ") and part in error, result.stderr
    assert not usage or usage[0].startswith("Usage: "), result.stderr
    assert pico.tree(folder) == before, "something was written"
    return result.exit_code, error


TRAININGS: list[tuple[str, str]] = [
    ("--set modle=base", "did you mean model?"),
    ("--set model=./nowhere", "no such folder"),
    ("--set model=./adapted", "holds only embeddings"),
    ("--set model=./quantized", "is quantized: train on the original weights"),
    ("--set tokenizer=./nowhere", "no such folder"),
    ("--set tokenizer=./base --set train.rows=new", "no token that the model lacks"),
    ("--set model=./tied --set train.tables=input", "are one tensor"),
    ("--set objective=distill", "`objective: distill` and `teacher` need each other"),
    ("--set objective=distill --set teacher=./wide", "cannot be compared"),
    ("--set objective=distill --set teacher=./quantized", "is quantized: name the original weights"),
    ("--set objective=chat --set 'data=[{path: prompts.jsonl, kind: chat}]'", "has no chat template"),
    ("--set learning_rate=[1e-4,1e-5]", "a sweep needs both"),
    ("--set data=./nowhere.txt", "no such file"),
    ("--set data=./empty.txt", "the corpus is empty"),
    ("--set data=./cp1251.txt", "iconv"),
    ("--set data=./rows.jsonl", "the source's column:"),
    ("--set evaluate.data.ru=./nowhere.txt", "no such file"),
    ("--set evaluate.data.ru=./empty.txt", "the corpus is empty"),
    ("--set evaluate.data.ru=./rows.jsonl", "evaluate.data.ru.column:"),
    ("--set output=base/out", "contains or is inside the input"),
    ("--set output=.", "contains or is inside the input"),
    ("--set output=text.txt", "is a file"),
    ("--device abacus", "auto, cpu, cuda"),
    ("--log-with nobody", "not known to accelerate"),
    ("--full full", "choose another --full"),
    ("--full base/full", "contains or is inside the input"),
    ("--set learning_rate=[1e-4,1e-5] --set sweep=120%", "should be a fraction such as 20%"),
    ("--set learning_rate=[1e-4,1e-5] --set sweep=20% --set evaluate=null", "chooses by held-out bits per byte"),
    ("--set train.tables=none", "needs `lora`"),
    ("--set 'data=[{path: prompts.jsonl, kind: chat}]'", "need another objective than text"),
    ("--set 'data=[{path: text.txt, prompt: Summarize}]'", "prompt should hold {text}"),
    ("--set 'data=[{path: prompts.jsonl, kind: chat, cut: 1KB}]'", "are for texts, not for `kind: chat`"),
    ("--set objective=chat", "set `kind: chat` for each source"),
    ("--set objective=distill --set teacher=./base --set packing=concatenate", "is for plain text"),
    ("--set 'lora={layers: [7]}'", "the model has no layer 7, only layers 0 to 1"),
    ("--set model=./narrow_head", "the tables should have one shape"),
    ("--set model=./adapter", "is a PEFT adapter: name its base"),
    ("--set data=./broken.txt.gz", "is damaged and cannot be decompressed"),
    ("--set data=./broken.parquet", "is not a readable parquet file"),
    ("--set data=./base", "holds no .txt, .jsonl, .parquet file"),
]


@pytest.mark.parametrize(("options", "part"), TRAININGS, ids=[options for options, _ in TRAININGS])
def test_a_training_is_refused_by_its_dry_run_with_the_same_line(
    inputs: Path, monkeypatch: pytest.MonkeyPatch, options: str, part: str
) -> None:
    dry, real = (
        refused(monkeypatch, inputs, f"train config.yaml {more} {options}", part) for more in ("--dry-run", "-q")
    )
    assert dry == real


COMMANDS: list[tuple[str, str]] = [
    ("train config.yaml --probe 2 --set evaluate=null", "give evaluate.data"),
    ("tokenizer extend nowhere text.txt --add 5 -o new", "nowhere"),
    ("tokenizer extend base nowhere.txt --add 5 -o new", "no such file"),
    ("tokenizer extend base text.txt --add 5 -o full", "is not empty"),
    ("tokenizer extend base text.txt --add 5 -o text.txt/new", "text.txt"),
    ("tokenizer extend base text.txt --add 99999 -o new", "a smaller --add"),
    ("tokenizer extend base text.txt --vocab-size 9 -o new", "tokens already"),
    ("tokenizer extend base text.txt --add 5 --script Klingon -o new", "Unicode has no script"),
    ("tokenizer extend base text.txt --add 5 --from nowhere -o new", "nowhere"),
    ("tokenizer extend unigram text.txt --add 5 -o new", "only BPE"),
    ("tokenizer extend base rows.jsonl --add 5 -o new", "--column"),
    ("tokenizer extend base cp1251.txt --add 5 -o new", "iconv"),
    ("tokenizer optimize base text.txt --keep 1% --vocab-size 500 -o new", "must stay"),
    ("tokenizer optimize base text.txt --keep 99% --vocab-size 99999 -o new", "a smaller --vocab-size"),
    ("tokenizer optimize base text.txt --keep 90% --vocab-size 500 -o full", "is not empty"),
    ("tokenizer train text.txt --type bpe --vocab-size 99 --like base -o new", "bytes alone are"),
    ("tokenizer train text.txt --type unigram --vocab-size 9999 --like base -o new", "sentencepiece cannot make"),
    ("tokenizer train text.txt --type bpe --vocab-size 500 --like base -o full", "is not empty"),
    ("tokenizer report nowhere --text text.txt", "nowhere"),
    ("tokenizer report unknown --text text.txt", "unk_token 'nothing' is not in model.vocab"),
    ("tokenizer report base --text nowhere.txt", "no such file"),
    ("tokenizer report base --text rows.jsonl", "--column"),
    ("tokenizer report base --text text.txt --plot nowhere/x.png", "there is no folder nowhere"),
    ("compare nowhere --text text.txt", "nowhere"),
    ("compare adapted --text text.txt", "holds embeddings only"),
    ("compare base --text nowhere.txt", "no such file"),
    ("compare base --text short.txt", "too few to measure on"),
    ("compare base --text rows.jsonl", "--column"),
    ("compare base base --text text.txt", "two models are named base"),
    ("compare base --text text.txt --reference other", "no such model, there is base"),
    ("compare base instruct --text text.txt --task answers.jsonl", "has no chat template"),
    ("compare instruct --text text.txt --task bad.jsonl", "bad.jsonl:1"),
    ("compare instruct --text text.txt --task prompts.jsonl", "no answer"),
    ("compare instruct --text text.txt --chat nowhere.jsonl", "nowhere.jsonl"),
    ("compare instruct --text text.txt --task long.jsonl", "do not fit the context"),
    ("compare short --text text.txt", "too short to measure on"),
    ("compare base --text text.txt --html mine.html", "was not written by lepmerge"),
    ("compare base --text text.txt --plot nowhere/x.png", "there is no folder nowhere"),
    ("compare base --text text.txt --max-bytes much", "5GB"),
    ("generate nowhere prompts.jsonl -o new", "nowhere"),
    ("generate instruct -o new", "there are no prompts"),
    ("generate instruct nowhere.jsonl -o new", "does not exist"),
    ("generate instruct bad.jsonl -o new", "bad.jsonl:1"),
    ("generate instruct system.jsonl -o new", "no message of the user"),
    ("generate instruct --text short.txt -o new", "no passage has"),
    ("generate instruct prompts.jsonl --copies nowhere.txt -o new", "no such file"),
    ("generate instruct prompts.jsonl --candidates 2 -o new", "give a --temperature"),
    ("generate instruct prompts.jsonl --grader-prompt grader.txt -o new", "need --grader"),
    (
        "generate instruct prompts.jsonl --grader instruct --grader-prompt grader.txt -o new",
        "does not contain {answer}",
    ),
    ("generate instruct prompts.jsonl --api-key-env HOME -o new", "needs --server"),
    ("generate x prompts.jsonl --server http://[ --api-key-env LEPMERGE_UNSET -o new", "no variable LEPMERGE_UNSET"),
    ("generate x prompts.jsonl --server nowhere -o new", "expected a URL"),
    ("generate x prompts.jsonl --server http://127.0.0.1:9 -o new", "http://127.0.0.1:9"),
    ("generate instruct --text text.txt --wordings wordings.json -o new", "expected an object"),
    ("generate instruct prompts.jsonl --script Klingon -o new", "Unicode has no script"),
    ("generate instruct prompts.jsonl -o full", "is not empty"),
    ("generate instruct prompts.jsonl -o instruct/new", "contains or is inside the input"),
    ("generate instruct long.jsonl -o new", "none of the 1 prompts fits"),
    ("generate base prompts.jsonl -o new", "has no chat template"),
    ("extract nowhere instruct -o new", "nowhere"),
    ("extract base instruct --rank 2 --energy 0.5 -o new", "either --rank or --energy"),
    ("extract base wide -o new", "different architectures"),
    ("extract base tied -o new", "an adapter cannot change that"),
    ("extract base adapted -o new", "different architectures"),
    ("extract base base -o new", "have the same matrices"),
    ("extract base instruct -o full", "is not empty"),
    ("extract base instruct -o base/new", "contains or is inside the input"),
    ("convert nowhere.gguf new", "does not exist"),
    ("convert not.gguf new", "not.gguf"),
    ("convert base.gguf full", "is not empty"),
    ("convert base.gguf base.gguf/new", "base.gguf"),
    ("inspect nowhere", "nowhere"),
    ("inspect text.txt", "text.txt"),
    ("inspect base.gguf/x", "base.gguf/x"),
    ("diff base nowhere", "nowhere"),
    ("inspect narrow_head", "the tables should have one shape"),
    ("inspect twice", "is in two files of one model"),
    ("inspect adapter", "adapter_model.safetensors is missing"),
    ("diff base adapter", "is a PEFT adapter: name its base"),
    ("compare adapter --text text.txt", "is a PEFT adapter: name its base"),
    ("inspect empty.gguf", "is not a GGUF file: it is empty"),
    ("inspect part-00001-of-00002.gguf", "lacks part-00002-of-00002.gguf of the split file"),
    ("plan deep.yaml", "deep.yaml: nested too deeply"),
    ("train deep.yaml", "deep.yaml: nested too deeply"),
    ("tokenizer report base --text base", "holds no .txt, .jsonl, .parquet file"),
    ("tokenizer report base --text broken.txt.gz", "is damaged and cannot be decompressed"),
    ("tokenizer report base --text broken.parquet", "is not a readable parquet file"),
    ("tokenizer optimize base text.txt --keep 90% --vocab-size 500 --limit much -o new", "5GB"),
    ("init instruct new --base base --no-base", "give either --base or --no-base"),
    ("init instruct new --base wide", "its layers have other shapes than those of instruct"),
    ("init quantized new", "is quantized, and cannot be trained"),
    ("init adapter new", "is a PEFT adapter: name a whole model"),
    ("init unigram_model new", "only BPE vocabularies can be extended"),
    ("generate x prompts.jsonl --grader y --grader-api-key-env HOME --server http://[ -o new", "--grader-server"),
    ("darumeru shots.json", "n-shot is 'x', not a whole number"),
    ("darumeru rows.jsonl", "rows.jsonl"),
    ("import rows.jsonl", "rows.jsonl"),
]


@pytest.mark.parametrize(("command", "part"), COMMANDS, ids=[command for command, _ in COMMANDS])
def test_a_command_that_refuses(inputs: Path, monkeypatch: pytest.MonkeyPatch, command: str, part: str) -> None:
    refused(monkeypatch, inputs, command, part)
