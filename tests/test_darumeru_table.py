"""`lepmerge darumeru`: the table of result files and the paper's rows, checked against a plain computation."""

import csv
import io
import json
import random
import re
from pathlib import Path
from statistics import fmean

import pico
import pytest

GROUPS = {
    "darummlu": ["rummlu", "mmlu_ru", "mmlu_en"],
    "darumera": ["multiq", "parus", "rcb", "rwsd", "use", "ruopenbookqa", "ruworldtree", "rucola"],
    "darusum": ["sum_abstractive", "sum_extractive"],
    "darucopy_en": ["cp_sent_en", "cp_para_en"],
    "darucopy_ru": ["cp_sent_ru", "cp_para_ru"],
}
TASKS = [task for tasks in GROUPS.values() for task in tasks]
COLUMNS = ["micro_avg", *GROUPS]
PAPER = Path(__file__).parent.parent / "lepmerge" / "comparison" / "darumeru_paper.csv"
NOTHING = ("--paper", "none")
REPOSITORIES = {"rucola": "RussianNLP/rucola", **dict.fromkeys(GROUPS["darusum"], "dichspace/daru_treeway_eval")}
COMMIT, OTHER = "0123456789abcdef" * 2 + "01234567", "fedcba9876543210" * 2 + "fedcba98"


def write(path: Path, tasks=TASKS, *, seed=0, model="org/model", shots=0, shift=0.0, error=0.01, **parts) -> Path:
    """Write a file of results as the harness does, with random scores; `parts` replace or add its keys."""
    draw = random.Random(seed)
    scores = {task: draw.uniform(0.2, 0.8) + shift for task in TASKS}
    errors = {task: draw.uniform(0.5, 1.5) * error for task in TASKS}
    results = {
        f"darumeru_{task}": {"alias": task, "score,none": scores[task], "score_stderr,none": errors[task]}
        for task in tasks
    }
    if "cp_para_ru" in tasks:
        results["darumeru_cp_para_ru"] |= {"symbol_per_token,none": 2.5, "exact_ids,none": 1.0}
    for number, task in enumerate(task for task in ("cp_sent_ru", "cp_sent_en", "cp_para_en") if task in tasks):
        results[f"darumeru_{task}"] |= {"symbol_per_token,none": 3.5 + number}
    found = {
        "results": results,
        "config": {"model": "hf", "model_args": {"pretrained": model}, "limit": None},
        "n-shot": {f"darumeru_{task}": 0 if task == "sum_extractive" else shots for task in tasks},
        "configs": configs(tasks),
        "model_name": model,
        "chat_template_sha": None,
        **parts,
    }
    path.write_text(json.dumps(found))
    return path


def configs(tasks: list[str], repository: str = "", **metadata: object) -> dict:
    """Return the harness's `configs`. metadata: what it has for the tasks of `repository`, the others have COMMIT."""
    found = {}
    for task in tasks:
        path = REPOSITORIES.get(task, "RefalMachine/darumeru")
        known = metadata if path == repository else {"data_commit": COMMIT}
        found[f"darumeru_{task}"] = {"dataset_path": path, "metadata": {"version": 1.0, **known}}
    return found


def rows(*arguments: object) -> list[dict]:
    done = pico.command("darumeru", *arguments, "--json")
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)["rows"]


def values(path: Path, key: str) -> dict[str, float]:
    results = json.loads(path.read_text())["results"]
    return {task: results[f"darumeru_{task}"][f"{key},none"] for task in TASKS}


def test_means_and_errors(tmp_path: Path) -> None:
    path = write(tmp_path / "results.json")
    (row,) = rows(path, *NOTHING)
    scores, errors = values(path, "score"), values(path, "score_stderr")
    for column, tasks in {"micro_avg": TASKS, **GROUPS}.items():
        assert row[column] == pytest.approx(fmean(scores[task] for task in tasks), abs=1e-12)
        variance = sum((errors[task] / len(tasks)) ** 2 for task in tasks)
        assert row[f"{column}_stderr"] == pytest.approx(variance**0.5, abs=1e-12)
    assert row["model"] == "model" and row["shots"] == 0 and row["symbols_per_token"] == 2.5


def test_a_row_has_the_most_shots_of_its_tasks_and_a_note_if_they_differ(tmp_path: Path) -> None:
    shots = {f"darumeru_{task}": 1 if task in GROUPS["darumera"] else 5 for task in TASKS}
    done = pico.command("darumeru", write(tmp_path / "results.json", **{"n-shot": shots}), *NOTHING, "--json")
    found = json.loads(done.stdout)
    assert [row["shots"] for row in found["rows"]] == [5]
    assert found["notes"] == [f"{tmp_path / 'results.json'}: the tasks have different numbers of shots, [1, 5]"]


def test_marks(tmp_path: Path) -> None:
    """A difference is marked above 1.96 of its standard errors: sqrt(2) times the error of a mean, the same for all."""
    reference = write(tmp_path / "reference.json", model="reference")
    errors = {row["model"]: row for row in rows(reference, *NOTHING)}["reference"]
    paths = [reference]
    for name, factor in (("above", 1.02), ("within", 0.98), ("below", -1.02)):
        shift = factor * 1.96 * 2**0.5 * errors["micro_avg_stderr"]
        paths.append(write(tmp_path / f"{name}.json", model=name, shift=shift))
    assert [row["micro_avg_mark"] for row in rows(*paths, *NOTHING)] == ["", "+", "", "-"]


def test_marks_take_the_errors_of_both_models(tmp_path: Path) -> None:
    """The other models have five times the reference's error."""
    reference = write(tmp_path / "reference.json", model="reference")
    (row,) = rows(reference, *NOTHING)
    paths = [reference]
    for name, factor in (("above", 1.02), ("within", 0.98), ("below", -1.02)):
        shift = factor * 1.96 * 26**0.5 * row["micro_avg_stderr"]
        paths.append(write(tmp_path / f"{name}.json", model=name, shift=shift, error=0.05))
    assert [row["micro_avg_mark"] for row in rows(*paths, *NOTHING)] == ["", "+", "", "-"]


def test_marks_of_the_papers_rows_use_the_references_error(tmp_path: Path) -> None:
    path = write(tmp_path / "results.json", error=0.02)
    measured, *paper = rows(path)
    for row in paper:
        for column in COLUMNS:
            far = abs(row[column] - measured[column]) > 1.96 * 2**0.5 * measured[f"{column}_stderr"]
            higher = row[column] > measured[column]
            assert row[f"{column}_mark"] == (("+" if higher else "-") if far else "")
    assert {row[f"{column}_mark"] for row in paper for column in COLUMNS} == {"", "+", "-"}


def test_unknown_errors_mark_nothing(tmp_path: Path) -> None:
    reference, other = (write(tmp_path / f"{n}.json", model=f"model-{n}", seed=n) for n in (1, 2))
    found = json.loads(reference.read_text())
    found["results"]["darumeru_rcb"]["score_stderr,none"] = "N/A"
    reference.write_text(json.dumps(found))
    first, second = rows(reference, other, *NOTHING)
    assert first["micro_avg_stderr"] is None and first["darumera_stderr"] is None
    assert second["micro_avg_mark"] == second["darumera_mark"] == ""
    assert second["darummlu_mark"] in ("+", "-") and first["darummlu_stderr"] > 0


def test_files_of_one_model_make_one_row(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.json", shots=5)
    parts = [write(tmp_path / f"{group}.json", tasks, shots=5) for group, tasks in GROUPS.items() if group != "darusum"]
    parts += [write(tmp_path / f"{task}.json", [task], shots=5) for task in GROUPS["darusum"]]
    (expected,), (merged,) = rows(whole, *NOTHING), rows(*reversed(parts), *NOTHING)
    assert merged["source"].count("json") == 6
    assert {**merged, "source": ""} == {**expected, "source": ""}


@pytest.mark.parametrize(
    "other",
    [
        {"model": "org/other"},
        {"model": "elsewhere/model"},
        {"model_name": "org/other"},
        {"shots": 5},
        {"chat_template_sha": "1"},
        {"config": {"model_args": {"pretrained": "org/model", "revision": "second"}}},
        {"tasks": TASKS},
    ],
    ids=lambda other: next(iter(other)),
)
def test_files_of_different_runs_make_different_rows(tmp_path: Path, other: dict) -> None:
    first = write(tmp_path / "first.json", GROUPS["darummlu"])
    second = write(tmp_path / "second.json", **{"tasks": GROUPS["darusum"], **other})
    found = rows(first, second, *NOTHING)
    assert len(found) == 2 and found[0]["darusum"] is None is found[0]["micro_avg"]
    assert len({(row["model"], row["shots"]) for row in found}) == 2


def test_other_generation_settings_are_noted_and_not_joined(tmp_path: Path) -> None:
    config = {"model_args": {"pretrained": "org/model"}, "limit": None, "gen_kwargs": {"max_gen_toks": 16}}
    first = write(tmp_path / "first.json", TASKS[:9])
    other = write(tmp_path / "other.json", TASKS[9:], config=config)
    assert len(rows(first, other, *NOTHING)) == 2
    done = pico.command("darumeru", other, *NOTHING)
    assert '--gen_kwargs {"max_gen_toks": 16} changes how the benchmark generates' in done.stdout + done.stderr


def test_models_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """They get their full names, and the file if a model was measured twice."""
    models = ["org/model", "out/model", "out/model", "other"]
    paths = [write(tmp_path / f"{number}.json", model=model) for number, model in enumerate(models)]
    shown = [row["model"] for row in rows(*paths, *NOTHING)]
    assert shown == ["org/model", "out/model (1.json)", "out/model (2.json)", "other"]


def test_notes_of_all_files_of_a_row(tmp_path: Path) -> None:
    config = {"model_args": {"pretrained": "org/model"}, "limit": 4}
    paths = [write(tmp_path / f"{group}.json", GROUPS[group], config=config) for group in ("darusum", "darummlu")]
    notes = json.loads(pico.command("darumeru", *paths, "--json").stdout)["notes"]
    assert [note.split(":")[0] for note in notes] == [*map(str, paths), f"{paths[0]}, {paths[1]}"]


def test_notes_say_what_is_not_the_benchmark(tmp_path: Path) -> None:
    path = write(tmp_path / "results.json", [task for task in TASKS if task != "use"])
    found = json.loads(path.read_text())
    found["config"]["limit"] = 8.0
    found["results"]["darumeru_cp_para_ru"]["exact_ids,none"] = 0.0
    found["n-shot"]["darumeru_rcb"] = 2
    path.write_text(json.dumps(found))
    done = pico.command("darumeru", path)
    assert done.exit_code == 0
    notes = done.stderr.splitlines()
    assert len(notes) == 4 and all(note.startswith("note: ") and str(path) in note for note in notes)
    for part, note in zip(["[0, 2]", "--limit 8", "darumeru_cp_para_ru", "without use;"], notes, strict=True):
        assert part in note
    assert json.loads(pico.command("darumeru", path, "--json").stdout)["notes"] == [note[6:] for note in notes]


def told(*paths: Path) -> tuple[list[str], list[str]]:
    """Return the lines about data on the terminal, and the notes. --json has the same notes."""
    done = pico.command("darumeru", *paths, *NOTHING)
    assert done.exit_code == 0, done.stderr
    notes = [note.removeprefix("note: ") for note in done.stderr.splitlines()]
    assert json.loads(pico.command("darumeru", *paths, *NOTHING, "--json").stdout)["notes"] == notes
    return [line for line in done.stdout.splitlines() if line.startswith("data")], notes


DARUMERU, TREEWAY = "RefalMachine/darumeru", "dichspace/daru_treeway_eval"
ALL = f"{DARUMERU}@{COMMIT[:12]}, RussianNLP/rucola@{COMMIT[:12]}, {TREEWAY}@{COMMIT[:12]}"
REASON = "Scores may differ for this reason: measure all models with one version, such as lm_eval --metadata"


def test_the_data_of_models_that_were_measured_with_one_version(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{name}.json", model=name) for name in "ab"]
    assert told(*paths) == ([f"data: {ALL}"], [])
    assert {row["data"] for row in rows(*paths, *NOTHING)} == {ALL.replace(COMMIT[:12], COMMIT)}
    assert {row["data"] for row in rows(*paths) if row["source"].startswith("paper")} == {None}


def test_models_that_were_measured_with_different_commits_of_the_data(tmp_path: Path) -> None:
    other = configs(TASKS, TREEWAY, data_commit=OTHER)
    paths = [write(tmp_path / f"{name}.json", model=name) for name in "ab"]
    paths.append(write(tmp_path / "c.json", model="c", configs=other))
    lines, notes = told(*paths)
    third = ALL.replace(f"{TREEWAY}@{COMMIT[:12]}", f"{TREEWAY}@{OTHER[:12]}")
    assert lines == [f"data of a, 0-shot: {ALL}", f"data of b, 0-shot: {ALL}", f"data of c, 0-shot: {third}"]
    assert notes == [
        f"different versions of the data {TREEWAY}: {TREEWAY}@{COMMIT} (a, 0-shot, b, 0-shot); {TREEWAY}@{OTHER} (c, "
        f"0-shot). {REASON} daru_treeway_eval_revision=COMMIT"
    ]


def test_one_model_whose_tasks_were_measured_with_different_commits(tmp_path: Path) -> None:
    new = configs(GROUPS["darummlu"], DARUMERU, data_commit=OTHER)
    parts = [
        write(tmp_path / "old.json", GROUPS["darumera"]),
        write(tmp_path / "new.json", GROUPS["darummlu"], configs=new),
    ]
    lines, notes = told(*parts)
    assert lines == [f"data: {DARUMERU}@{COMMIT[:12]}, {DARUMERU}@{OTHER[:12]}, RussianNLP/rucola@{COMMIT[:12]}"]
    assert notes[1:] == [
        f"different versions of the data {DARUMERU}: {DARUMERU}@{COMMIT} (model, 0-shot); {DARUMERU}@{OTHER} (model, "
        f"0-shot). {REASON} darumeru_revision=COMMIT"
    ]
    assert "their groups and the Micro-Avg are left out" in notes[0]


def test_local_files_are_compared_by_their_hashes(tmp_path: Path) -> None:
    """Models with different tasks have none in common that could differ."""
    local = {"data_sha256": {"test": "1", "prompt": "2"}}
    tasks = ["parus", "rcb"]
    known = {name: configs(tasks, DARUMERU, **local) for name in "ab"}
    paths = [write(tmp_path / f"{name}.json", tasks, model=name, configs=known[name]) for name in "ab"]
    paths.append(write(tmp_path / "c.json", ["use"], model="c", configs=configs(["use"], DARUMERU, data_sha256={})))
    lines, notes = told(*paths)
    assert lines == ["data: local files"] and not [note for note in notes if "data" in note]
    known["b"]["darumeru_rcb"]["metadata"]["data_sha256"] = {"test": "1", "prompt": "3"}
    write(paths[1], tasks, model="b", configs=known["b"])
    lines, notes = told(*paths)
    assert lines == ["data: local files"]
    assert notes[-1] == (
        f"different versions of the data {DARUMERU}: local files (a, 0-shot, b, 0-shot, c, 0-shot); the local files of "
        f"rcb differ. {REASON} darumeru_revision=COMMIT"
    )
    lines, notes = told(paths[0], write(tmp_path / "d.json", tasks, model="d"))
    assert lines == ["data of a, 0-shot: local files", f"data of d, 0-shot: {DARUMERU}@{COMMIT[:12]}"]
    assert notes[-1] == (
        f"different versions of the data {DARUMERU}: local files (a, 0-shot); {DARUMERU}@{COMMIT} (d, 0-shot). "
        f"{REASON} darumeru_revision=COMMIT"
    )


@pytest.mark.parametrize("config", [None, 1, {"metadata": 1}, {"metadata": {"data_commit": 1, "data_sha256": "x"}}])
def test_results_that_do_not_name_the_version_of_the_data(tmp_path: Path, config: object) -> None:
    """As those of lepmerge 0.1. The other model's version cannot differ from an unknown one, but the note asks."""
    path = write(tmp_path / "old.json", model="old", configs=configs(TASKS) | {"darumeru_rcb": config})
    _, notes = told(path, write(tmp_path / "new.json", model="new"))
    assert notes == [f"{path}: the version of the data of rcb is not recorded: make sure that all models had the same"]


FAULTS = {
    "not a JSON file": "{",
    "has no `results`": "[]",
    "expected the results_*.json": '{"results": 1}',
    "has no Darumeru task: run lm_eval --tasks darumeru": '{"results": {"mmlu": {"acc,none": 1}}}',
    "darumeru_rcb has no score (was it run with --predict_only?)": '{"results": {"darumeru_rcb": {"bypass,none": 9}}}',
    "darumeru_use has no score": '{"results": {"darumeru_use": 1}}',
}


@pytest.mark.parametrize("message", FAULTS)
def test_faults_are_one_line(tmp_path: Path, message: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(FAULTS[message])
    pico.assert_one_line_error(pico.command("darumeru", path), 1, path, message)


def test_a_missing_file_and_two_formats(tmp_path: Path) -> None:
    path = tmp_path / "none.json"
    pico.assert_one_line_error(pico.command("darumeru", path), 1, path, "No such file")
    done = pico.command("darumeru", write(tmp_path / "results.json"), "--json", "--csv")
    assert done.exit_code == 2 and "either --json or --csv" in done.stderr


def test_json_and_csv_say_the_same(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{shots}.json", shots=shots, seed=shots) for shots in (0, 5)]
    records = rows(*paths)
    lines = list(csv.DictReader(io.StringIO(pico.command("darumeru", *paths, "--csv").stdout)))
    assert len(lines) == len(records) == 2 + 8 + 9  # tables 1 and 2 of the paper
    for line, record in zip(lines, records, strict=True):
        assert {key: text or None for key, text in line.items()} == {
            key: None if value is None or value == "" else str(value) for key, value in record.items()
        }
        assert all(float(line[column]) == record[column] for column in COLUMNS)


def test_the_table_on_the_terminal(tmp_path: Path) -> None:
    """In parts, each of at most 100 characters, with the paper's rows under the name of their table."""
    paths = [write(tmp_path / "a.json", model="a"), write(tmp_path / "b.json", model="b", shift=0.3)]
    paths += [write(tmp_path / "c.json", model="c", shift=-0.3)]
    first, second, third, *paper = rows(*paths, "--paper", "3", "--paper", "4")
    *parts, last = pico.command("darumeru", *paths, "--paper", "3", "--paper", "4").stdout.strip().split("\n\n")
    assert last.split("\n") == [
        "+ and -: significantly higher or lower than a, 0-shot (5 % level)",
        "data: RefalMachine/darumeru@0123456789ab, RussianNLP/rucola@0123456789ab, "
        "dichspace/daru_treeway_eval@0123456789ab",
    ]
    assert len(parts) == 3 and all(len(line) <= 100 for part in parts for line in part.split("\n"))
    shown = {}
    for part in parts:
        head, *lines = part.split("\n")
        sources = [(place, line) for place, line in enumerate(lines) if line.startswith("-- ")]
        tables = [row["source"] for row in paper]
        assert sources == [(3, "-- paper, table 3"), (4 + tables.count("paper, table 3"), "-- paper, table 4")]
        lines = [line for line in lines if not line.startswith("-- ")]
        assert all(line.startswith(row["model"]) for line, row in zip(lines[3:], paper, strict=True))
        starts = [match.start() for match in re.finditer(r"\S+( \S+)*", head)]
        for model, line in zip("abc", lines, strict=False):
            cells = [line[start:stop].strip() for start, stop in zip(starts, [*starts[1:], None], strict=True)]
            shown |= {(model, title): cell for title, cell in zip(re.split(" {2,}", head), cells, strict=True)}
    titles = ["Micro-Avg", "DaruMMLU", "DaruMERA", "DaruSum", "DaruCopy EN", "DaruCopy RU"]
    for row, mark in ((first, ""), (second, " +"), (third, " -")):
        for column, title in zip(COLUMNS, titles, strict=True):
            expected = f"{row[column]:.3f} ±{row[f'{column}_stderr']:.3f}{mark}"
            assert shown[row["model"], title] == expected
        assert shown[row["model"], "symbols/token"] == "2.50" and shown[row["model"], "shots"] == "0"


@pytest.mark.parametrize("shots, table, count", [(0, "1", 8), (5, "2", 9), (2, None, 0)])
def test_the_papers_tables_with_as_many_shots(tmp_path: Path, shots: int, table: str | None, count: int) -> None:
    _, *paper = rows(write(tmp_path / "results.json", shots=shots))
    assert [row["source"] for row in paper] == [f"paper, table {table}"] * count


def test_the_papers_micro_averages_are_means_of_the_17(tmp_path: Path) -> None:
    """This holds for all 58 rows up to the paper's rounding, and every number is shown as in the paper."""
    tables = [part for number in "1234" for part in ("--paper", number)]
    _, *paper = rows(write(tmp_path / "results.json"), *tables)
    assert len(paper) == 58
    for row in paper:
        total = sum(len(tasks) * row[group] for group, tasks in GROUPS.items())
        assert abs(total / 17 - row["micro_avg"]) <= 0.0008, row["model"]
    with PAPER.open(encoding="utf-8", newline="") as file:
        printed = list(csv.DictReader(file))
    assert [[row[column] for column in COLUMNS] for row in paper] == [
        [float(line[column]) for column in COLUMNS] for line in printed
    ]
    assert len({(row["model"], row["source"]) for row in paper}) == 58


def test_chart(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.json", model="a")
    part = write(tmp_path / "b.json", GROUPS["darumera"], model="b", shots=5)
    done = pico.command("darumeru", whole, part, "--plot", tmp_path / "chart.png")
    assert done.stdout.splitlines()[-1] == str(tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
    pico.assert_one_line_error(
        pico.command("darumeru", whole, "--plot", tmp_path / "none" / "chart.png", "--json"),
        1,
        "none",
        "cannot be written",
    )
    pico.assert_one_line_error(pico.command("darumeru", whole, "--plot", tmp_path / "a.b"), 1, "a.b", "supported")
