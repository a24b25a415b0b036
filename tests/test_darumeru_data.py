"""The miniature data is complete. A local folder that is not complete gives a one-line error with file and line."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import darumeru_reference as reference
import darumeru_setting
import hub
import pytest
from darumeru_setting import DATA, NAMES, load

ROWS = ["multiq", "parus", "rcb", "rwsd", "use", "ruopenbookqa", "ruworldtree", "rummlu"]
ROWS += ["cp_sent_ru", "cp_sent_en", "cp_para_ru", "cp_para_en"]


def test_the_miniature_data_has_twelve_rows_a_split_and_all_subjects():
    assert {path.name for path in DATA.iterdir()} == {*ROWS, "mmlu_nlpcoreteam", "rucola", "daru_treeway_eval"}
    for name, task in load().items():
        assert len(task.test_docs()) >= 12, name
        assert all(task.test_docs()[0].keys() == document.keys() for document in task.test_docs())
    for split in ("test", "dev"):
        assert len({row["subject"] for row in reference.rows("mmlu_nlpcoreteam", split)}) == 57
    assert len(reference.rows("mmlu_nlpcoreteam", "dev")) == 57 * 5
    assert len(reference.rows("rucola", "train")) >= 29 + 5


def test_the_miniature_data_reaches_every_branch_of_the_scores():
    kinds = {(row["meta"]["type"], row["meta"]["id_task"] == "16") for row in reference.rows("use")}
    assert {("text", False), ("matching", False), ("multiple_choice_independent_options", True)} <= kinds
    assert ("multiple_choice_based_on_text", False) in kinds
    assert any("," in row["outputs"] for row in reference.rows("use") if row["meta"]["type"] == "text")
    assert len({str(row["meta"]["variant"]) for row in reference.rows("use")}) == 2
    assert {len(row["outputs"]) for row in reference.rows("multiq")} == {1, 2, 3}
    for name, labels in (("parus", "12"), ("rcb", "123"), ("ruopenbookqa", "ABCD"), ("ruworldtree", "ABCD")):
        assert {row["outputs"] for row in reference.rows(name)} == set(labels)
    assert {str(row["label"]) for row in reference.rows("rucola", "validation")} == {"0", "1"}
    assert {row["outputs"] for row in reference.rows("rwsd")} > {"Да", "Нет"}  # some say more than the choice
    assert {row["answer"] for row in reference.rows("mmlu_nlpcoreteam")} == {0, 1, 2, 3}
    assert len({len(row["extractive_summary"]) for row in reference.rows("daru_treeway_eval")}) > 1
    assert any(row["inputs"]["text"] != row["inputs"]["text"].strip() for row in reference.rows("cp_sent_ru"))


def test_where_the_folder_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path):
    from lm_eval.tasks import TaskManager

    def documents(**metadata):
        path = str(darumeru_setting.ROOT / "eval" / "darumeru_tasks")
        manager = TaskManager(include_path=path, include_defaults=False, metadata=metadata)
        return len(manager.load(["darumeru_rcb"])["tasks"]["darumeru_rcb"].test_docs())

    folder = copied(tmp_path, "rcb")
    (folder / "rcb" / "test.jsonl").write_text((DATA / "rcb" / "test.jsonl").read_text("utf-8").split("\n")[0] + "\n")
    monkeypatch.setenv("DARUMERU_DATA", str(DATA))
    assert documents() == 12
    assert documents(darumeru_data=str(folder)) == 1  # the argument wins
    monkeypatch.delenv("DARUMERU_DATA")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert documents(darumeru_data=f"~/{folder.name}") == 1


def test_a_copy_of_the_repository_of_the_hub(tmp_path):
    """Its configs lie in the folder `data`. The data sets of the other repositories may lie there, or beside `data`."""
    copy = tmp_path / "copy"
    shutil.copytree(DATA, copy / "data")
    for other in ("rucola", "daru_treeway_eval"):
        (copy / "data" / other).rename(copy / other)
    plain, copied = load(), load(data=copy)
    assert {name: task.dataset for name, task in copied.items()} == {name: task.dataset for name, task in plain.items()}
    (copy / "data/rcb/test.jsonl").unlink()
    assert str(copy / "data/rcb/test.jsonl") in fault(copy, "rcb")


def test_the_results_name_local_files_by_their_hashes(monkeypatch: pytest.MonkeyPatch):
    """Also those of the environment variable, which the harness does not record."""
    monkeypatch.setenv("DARUMERU_DATA", str(DATA))
    for name, folder, splits in (("rcb", "rcb", ["test", "prompt"]), ("rucola", "rucola", ["validation", "train"])):
        metadata = darumeru_setting.load([f"darumeru_{name}"], data="")[name].dump_config()["metadata"]
        files = {split: (DATA / folder / f"{split}.jsonl").read_bytes() for split in splits}
        assert metadata["data_sha256"] == {split: hashlib.sha256(data).hexdigest() for split, data in files.items()}
        assert "data_commit" not in metadata


LOAD = """
import json, sys
from lm_eval.tasks import TaskManager
for pin in sys.argv[2:]:
    metadata = {"darumeru_revision": pin} if pin else {}
    manager = TaskManager(include_path=sys.argv[1], include_defaults=False, metadata=metadata)
    task = manager.load(["darumeru_rcb"])["tasks"]["darumeru_rcb"]
    print(json.dumps([len(task.test_docs()), task.dump_config()["metadata"]]))
"""


@pytest.mark.slow
def test_a_pinned_revision(tmp_path):
    """The pin decides which rows of the Hub are read, and the config names it. Without a network, too."""
    old, new = "a" * 40, "b" * 40
    darumeru_setting.write_commits(tmp_path / "datasets", {old: 5, new: 12})

    def loaded(*pins: str, **environment: str):
        clean = {key: value for key, value in os.environ.items() if key != "DARUMERU_DATA"}
        command = [sys.executable, "-c", LOAD, darumeru_setting.ROOT / "eval" / "darumeru_tasks", *pins]
        environment = {**clean, "HF_HOME": str(tmp_path / "cache"), **environment}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)

    with hub.hub(tmp_path / "datasets") as address:
        done = loaded(old, "", HF_HUB_OFFLINE="0", HF_ENDPOINT=address)
    assert done.returncode == 0, done.stderr
    (number, pinned), (number_now, newest) = map(json.loads, done.stdout.splitlines())
    assert number == 5 and pinned["darumeru_revision"] == pinned["data_commit"] == old
    assert number_now == 12 and newest["data_commit"] == new and "darumeru_revision" not in newest
    done = loaded(new, old, HF_HUB_OFFLINE="1")
    assert json.loads(done.stdout)[0] == 12
    assert done.stderr.splitlines()[-1].startswith(
        f"darumeru_tasks.errors.DarumeruError: data set RefalMachine/darumeru:rcb, revision {old}, split test, cannot "
        f"be loaded from the Hub (no connection, and the cache has commit {new}); connect to the network, or"
    )


@pytest.mark.parametrize(
    ("name", "metadata", "message"),
    [
        (
            "rcb",
            {"darumeru_revision": "abc"},
            "darumeru_revision=abc pins RefalMachine/darumeru on the Hub, but the da",
        ),
        (
            "rucola",
            {"rucola_revision": "abc"},
            "rucola_revision=abc pins RussianNLP/rucola on the Hub, but the data co",
        ),
        (
            "rcb",
            {"darumeru_revision": 123},
            "darumeru_revision is 123, not a commit, tag or branch: digits alone need q",
        ),
        (
            "rcb",
            {"darumeru_revison": "abc"},
            "--metadata darumeru_revison: unknown key, expected one of darumeru_data",
        ),
    ],
)
def test_wrong_revisions(name, metadata, message):
    from darumeru_tasks.errors import DarumeruError

    with pytest.raises(DarumeruError) as caught:
        load([f"darumeru_{name}"], **metadata)
    assert str(caught.value).startswith(message)
    load(["darumeru_rwsd"], rucola_revision="abc")  # it pins another data set


def test_summaries_are_the_first_500(tmp_path):
    folder = copied(tmp_path, "daru_treeway_eval")
    path = folder / "daru_treeway_eval" / "test.jsonl"
    lines = path.read_text("utf-8").splitlines()
    path.write_text("\n".join(lines * 50), "utf-8")  # and no line's end at the end
    for name in ("sum_abstractive", "sum_extractive"):
        assert len(load([f"darumeru_{name}"], data=folder)[name].test_docs()) == 500


def copied(tmp_path: Path, *configs: str) -> Path:
    folder = tmp_path / "data"
    for config in configs:
        shutil.copytree(DATA / config, folder / config)
    return folder


def fault(folder: Path, name: str) -> str:
    """Return the one line that says why a task cannot be loaded from a folder."""
    from darumeru_tasks.check import check
    from darumeru_tasks.errors import DarumeruError

    with pytest.raises(DarumeruError) as caught:
        load([f"darumeru_{name}"], data=folder)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert check([f"darumeru_{name}"], darumeru_setting.manager(data=folder)) == message
    return message


CONFIGS = {"mmlu_ru": "mmlu_nlpcoreteam", "mmlu_en": "mmlu_nlpcoreteam", "rucola": "rucola"}
CONFIGS |= {"sum_abstractive": "daru_treeway_eval", "sum_extractive": "daru_treeway_eval"}


def config_of(name: str) -> str:
    return CONFIGS.get(name, name)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_split_and_a_missing_config(tmp_path, name):
    task = load([f"darumeru_{name}"])[name]
    folder = copied(tmp_path, config_of(name))
    for split in task.dataset:
        path = folder / config_of(name) / f"{split}.jsonl"
        text = path.read_text("utf-8")
        path.unlink()
        message = fault(folder, name)
        assert str(path) in message and "No such file" in message and "DARUMERU_DATA" in message
        path.write_text(text, "utf-8")
    shutil.rmtree(folder / config_of(name))
    assert str(folder / config_of(name)) in fault(folder, name)


@pytest.mark.parametrize("name", NAMES)
def test_every_key_that_is_needed(tmp_path, name):
    """If a key of a row is removed or has another type, there is an error at its line, unless the task ignores it."""
    folder, config = copied(tmp_path, config_of(name)), config_of(name)
    split = "validation" if name == "rucola" else "test"
    path = folder / config / f"{split}.jsonl"
    rows = reference.rows(config, split)
    language = "en" if name == "mmlu_ru" else "ru"
    unread = {"id", "error_type", "detailed_source", f"question_{language}", f"choices_{language}"}
    unread |= {"sum_abstractive": {"extractive_summary"}, "sum_extractive": {"summary_sents"}}.get(name, set())
    unread |= {"outputs"} if name.startswith("cp_") else set()  # the gold of a copy is its input
    for key in rows[3]:
        damages = [{k: v for k, v in rows[3].items() if k != key}]
        if key != "meta":  # it may be null where nothing of it is read
            damages += [{**rows[3], key: None}, {**rows[3], key: 2.5}, {**rows[3], key: {}}]
        for damaged in damages:
            write(path, [*rows[:3], damaged, *rows[4:]])
            if key in unread:
                load([f"darumeru_{name}"], data=folder)
            else:
                message = fault(folder, name)
                assert f"{path}:4: " in message, message
                assert key in damaged or message.endswith(f"{key!r} is missing")


def write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


@pytest.mark.parametrize(
    ("name", "split", "change", "parts"),
    [
        ("rcb", "test", {"outputs": "4"}, ["the answer '4' is not one of the choices 1, 2, 3"]),
        ("rcb", "test", {"outputs": "12"}, ["the answer '12'"]),
        ("rcb", "prompt", {"outputs": ""}, ["the answer ''"]),
        ("rwsd", "test", {"outputs": "Данные"}, ["not one of the choices Да, Нет"]),
        ("rcb", "test", {"outputs": ["1"]}, ["the answer is a list, not a text"]),
        ("parus", "test", {"meta": {}}, ["'id' is missing"]),
        ("parus", "test", {"inputs": {"premise": "a", "choice1": "b"}}, ["'choice2' is missing"]),
        ("rcb", "test", {"inputs": {"premise": "a"}}, ["'hypothesis' is missing"]),
        ("use", "test", {"meta": {"id_task": "1", "type": "text"}}, ["'variant' is missing"]),
        ("use", "test", {"meta": "x"}, ["does not fit this data set"]),
        ("rcb", "test", {"messages": [{"role": "robot", "content": "x"}]}, ["roles ['robot']", "user"]),
        ("rcb", "test", {"messages": []}, ["roles []"]),
        ("rcb", "test", {"messages": [{"role": "user"}]}, ["'content' is missing"]),
        ("rcb", "test", {"messages": [{"role": "user", "content": "{premise"}]}, ["expected '}'"]),
        ("multiq", "test", {"outputs": []}, ["the text `segment`, at least one"]),
        ("multiq", "test", {"outputs": [{"segment": 5}]}, ["the text `segment`"]),
        ("multiq", "test", {"outputs": [{"text": "x"}]}, ["'segment' is missing"]),
        ("mmlu_ru", "test", {"subject": "alchemy"}, ["subject 'alchemy' is not one of MMLU's 57"]),
        ("mmlu_en", "dev", {"answer": 4}, ["the answer 4, not 4 and 0 to 3"]),
        ("mmlu_en", "test", {"answer": -1}, ["the answer -1"]),
        ("mmlu_en", "test", {"choices_en": ["a", "b", "c"]}, ["3 choices_en"]),
        ("mmlu_en", "test", {"choices_en": "abcd"}, ["choices_en is not a list of texts"]),
        ("rucola", "validation", {"label": "2"}, ["not one of the choices 0, 1"]),
        ("sum_extractive", "test", {"extractive_summary": [0, 99]}, ["[0, 99] must be a list of indices of the"]),
        ("sum_extractive", "test", {"src_sents": []}, ["of the 0 src_sents"]),
        ("sum_extractive", "test", {"extractive_summary": [-1]}, ["[-1] must be a list of indices"]),
        ("sum_abstractive", "prompt", {"summary_sents": "one text"}, ["summary_sents is not a list of texts"]),
        ("cp_sent_ru", "test", {"inputs": {"text": ["x"]}}, ["the answer is a list"]),
    ],
)
def test_wrong_values(tmp_path, name, split, change, parts):
    folder, config = copied(tmp_path, config_of(name)), config_of(name)
    path = folder / config / f"{split}.jsonl"
    rows = reference.rows(config, split)
    rows[4].update(change)
    write(path, rows)
    message = fault(folder, name)
    assert message.startswith(f"{path}:5: ")
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (lambda lines: [*lines[:4], lines[4][:40], *lines[5:]], [":5: not JSON", "column"]),
        (lambda lines: [*lines[:2], "", "[1, 2]", *lines[4:]], [":4: a row is a JSON object, this is a list"]),
        (lambda lines: [*lines[:2], "null"], [":3: a row is a JSON object"]),
        (lambda lines: [], ["has no rows"]),
        (lambda lines: ["", " "], ["has no rows"]),
    ],
)
def test_broken_files(tmp_path, damage, parts):
    folder = copied(tmp_path, "rcb")
    path = folder / "rcb" / "test.jsonl"
    path.write_text("\n".join(damage(path.read_text("utf-8").splitlines())), "utf-8")
    message = fault(folder, "rcb")
    assert str(path) in message and all(part in message for part in parts), message


def test_other_encodings_and_a_folder_in_place_of_a_file(tmp_path):
    folder = copied(tmp_path, "rcb")
    path = folder / "rcb" / "test.jsonl"
    text = path.read_text("utf-8")
    path.write_bytes(text.encode("utf-16"))
    assert f"{path} is not UTF-8" in fault(folder, "rcb")
    path.write_bytes(text.encode("utf-8-sig"))  # a byte order mark is accepted
    assert len(load(["darumeru_rcb"], data=folder)["rcb"].test_docs()) == 12
    path.write_text(text.replace("Анна", "Ан\u2028на"), "utf-8")  # a separator within a text does not end a line
    assert len(load(["darumeru_rcb"], data=folder)["rcb"].test_docs()) == 12
    path.unlink()
    path.mkdir()
    assert f"{path} cannot be read" in fault(folder, "rcb")


def test_a_checked_folder_is_read_once(tmp_path, monkeypatch: pytest.MonkeyPatch):
    from darumeru_tasks.check import check

    folder = copied(tmp_path, "rcb")
    assert check(["darumeru_rcb"], darumeru_setting.manager(data=folder)) is None
    shutil.rmtree(folder)
    assert len(load(["darumeru_rcb"], data=folder)["rcb"].test_docs()) == 12
    assert str(folder) in fault(folder, "rcb")  # only the next one finds them ready


@pytest.mark.parametrize("name", ["rcb", "rucola", "mmlu_en", "sum_extractive"])
def test_without_network_and_data_both_remedies_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path, name):
    import datasets
    from darumeru_tasks.errors import DarumeruError

    monkeypatch.delenv("DARUMERU_DATA", raising=False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    with pytest.raises(DarumeruError) as caught:
        load([f"darumeru_{name}"], data=Path(""), darumeru_data="")
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert all(part in message for part in ("network", "--metadata darumeru_data=DIR", "DARUMERU_DATA=DIR"))
    assert f"DIR/{config_of(name)}/{'validation' if name == 'rucola' else 'test'}.jsonl" in message


def test_a_missing_package_is_said_when_the_task_is_built(monkeypatch: pytest.MonkeyPatch):
    import sys

    from darumeru_tasks import metrics
    from darumeru_tasks.errors import DarumeruError

    monkeypatch.setitem(sys.modules, "pymorphy3", None)
    metrics.rouge_scorer.cache_clear()
    with pytest.raises(DarumeruError, match=r"darumeru_sum_abstractive needs the package pymorphy3: pip install"):
        load(["darumeru_sum_abstractive"])
    assert load(["darumeru_rcb"])


def test_an_unknown_tokenizer_is_said_before_anything_is_generated(tmp_path):
    from darumeru_tasks.errors import DarumeruError

    with pytest.raises(DarumeruError, match="the model's tokenizer is not known: name it in --model_args"):
        load(["darumeru_cp_sent_ru"])["cp_sent_ru"].build_all_requests(limit=1)
    with pytest.raises(DarumeruError, match=f"no tokenizer in {tmp_path}"):
        load(["darumeru_cp_sent_ru"], pretrained=str(tmp_path))["cp_sent_ru"].build_all_requests(limit=1)


def test_an_option_that_the_tasks_do_not_have(tmp_path):
    from darumeru_tasks.errors import DarumeruError

    text = (darumeru_setting.ROOT / "eval" / "darumeru_tasks" / "darumeru_rcb.yaml").read_text("utf-8")
    for path in (darumeru_setting.ROOT / "eval" / "darumeru_tasks").glob("*"):
        if path.suffix == ".py" or path.name == "_template":
            shutil.copy(path, tmp_path)
    (tmp_path / "mine.yaml").write_text(text.replace("statistic:", "statistics:").replace("darumeru_rcb", "mine"))
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tmp_path), include_defaults=False, metadata={"darumeru_data": str(DATA)})
    with pytest.raises(DarumeruError, match=r"mine: a `darumeru` block has kind, choices.*not \['statistics'\]"):
        manager.load(["mine"])
