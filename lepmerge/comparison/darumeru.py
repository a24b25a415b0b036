"""Turn result files of lm-evaluation-harness into the table of the Darumeru benchmark, with the paper's rows."""

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeGuard

from lepmerge.comparison.darumeru_data import Version, shown, versions
from lepmerge.errors import ResultError

GROUPS = {
    "darummlu": ("rummlu", "mmlu_ru", "mmlu_en"),
    "darumera": ("multiq", "parus", "rcb", "rwsd", "use", "ruopenbookqa", "ruworldtree", "rucola"),
    "darusum": ("sum_abstractive", "sum_extractive"),
    "darucopy_en": ("cp_sent_en", "cp_para_en"),
    "darucopy_ru": ("cp_sent_ru", "cp_para_ru"),
}
"""Group → its data sets, in the order of the paper's columns."""
COLUMNS = {
    "micro_avg": "Micro-Avg",
    "darummlu": "DaruMMLU",
    "darumera": "DaruMERA",
    "darusum": "DaruSum",
    "darucopy_en": "DaruCopy EN",
    "darucopy_ru": "DaruCopy RU",
}
TASKS = tuple(task for tasks in GROUPS.values() for task in tasks)
SIGNIFICANT = 1.96
"""A difference of more standard errors than this is marked as significant (5 % level, two-sided, normal)."""


@dataclass
class Row:
    """One row of the table.

    scores: key of COLUMNS → score between 0 and 1, None if not measured. errors: their standard errors, None if not
    known. symbols_per_token: measured on the Russian paragraphs that the model generated. data: task → version of its
    data.
    """

    model: str
    shots: int | None
    source: str
    scores: dict[str, float | None] = field(default_factory=dict)
    errors: dict[str, float | None] = field(default_factory=dict)
    symbols_per_token: float | None = None
    data: dict[str, Version] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def measured(self) -> bool:
        """Whether the row comes from a result file, not from the paper."""
        return not self.source.startswith("paper")


def read_results(paths: Sequence[Path]) -> list[Row]:
    """Return one row per model, generation setting and number of shots.

    Files that agree in these and have different tasks are joined to one row.

    Raises:
        ResultError: a file is not a result of the harness, or has no Darumeru task.
    """
    runs: list[_Run] = []
    for path in paths:
        run = _read(path)
        for other in runs:
            if other.continued_by(run):
                other.take(run)
                break
        else:
            runs.append(run)
    for run in runs:
        _average(run.row, run.tasks)
    _tell_apart(runs)
    return [run.row for run in runs]


@dataclass
class _Run:
    """A row in the making. tasks: data set → the harness's values. setting: everything that may change the scores."""

    row: Row
    tasks: dict[str, dict[str, Any]]
    name: str
    setting: str

    def continued_by(self, other: "_Run") -> bool:
        """Return whether both have the same model and setting and no data set in common."""
        same_shots = self.row.shots == other.row.shots or None in (self.row.shots, other.row.shots)
        same = (self.name, self.setting) == (other.name, other.setting) and same_shots
        return same and not self.tasks.keys() & other.tasks.keys()

    def take(self, other: "_Run") -> None:
        self.tasks.update(other.tasks)
        self.row.data.update(other.row.data)
        self.row.notes += other.row.notes
        self.row.source += f", {other.row.source}"
        if self.row.shots is None:
            self.row.shots = other.row.shots


def _read(path: Path) -> _Run:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ResultError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ResultError(f"{path} is not a JSON file: {error}") from error
    results = found.get("results") if isinstance(found, dict) else None
    if not isinstance(results, dict):
        raise ResultError(f"{path} has no `results`: expected the results_*.json of lm_eval --output_path")
    tasks = {name: results[f"darumeru_{name}"] for name in TASKS if f"darumeru_{name}" in results}
    if not tasks:
        raise ResultError(f"{path} has no Darumeru task: run lm_eval --tasks darumeru")
    for name, values in tasks.items():
        if not isinstance(values, dict) or not _is_number(values.get("score,none")):
            raise ResultError(f"{path}: darumeru_{name} has no score (was it run with --predict_only?)")
        for key in ("exact_ids,none", "symbol_per_token,none"):
            if values.get(key) is not None and not _is_number(values[key]):
                raise ResultError(f"{path}: darumeru_{name}: {key} is {values[key]!r:.40}, not a number")
    config, all_shots = (_object(found, key) for key in ("config", "n-shot"))
    arguments = _object(config, "model_args")
    name = str(found.get("model_name") or arguments.get("pretrained") or path.stem)
    setting = [arguments, found.get("chat_template_sha"), found.get("system_instruction_sha")]
    setting += [config.get("limit"), config.get("gen_kwargs")]
    counts = [all_shots.get(f"darumeru_{name}") or 0 for name in tasks if name != "sum_extractive"]
    if wrong := [number for number in counts if not isinstance(number, int)]:
        raise ResultError(f"{path}: n-shot is {wrong[0]!r:.40}, not a whole number")
    shots = set(counts)
    data = versions(_object(found, "configs"), tasks)
    row = Row(model=Path(name).name, shots=max(shots, default=None), source=str(path), data=data)
    if len(shots) > 1:
        row.notes.append(f"{path}: the tasks have different numbers of shots, {sorted(shots)}")
    if config.get("limit"):
        row.notes.append(f"{path}: only --limit {config['limit']} documents of each task: scores are not comparable")
    if generation := config.get("gen_kwargs"):
        given = generation if isinstance(generation, str) else json.dumps(generation, ensure_ascii=False)
        row.notes.append(
            f"{path}: --gen_kwargs {given} changes how the benchmark generates: these scores are not comparable with "
            f"the paper's or with those of other settings"
        )
    for task, values in tasks.items():
        exact = values.get("exact_ids,none")
        if exact is not None and exact < 1:
            row.notes.append(f"{path}: darumeru_{task}: the backend gave no token ids, its text was tokenized anew")
    if unknown := [task for task, version in data.items() if not version.known]:
        of = "" if len(unknown) == len(tasks) else f" of {', '.join(unknown)}"
        row.notes.append(f"{path}: the version of the data{of} is not recorded: make sure that all models had the same")
    return _Run(row, tasks, name, json.dumps(setting, sort_keys=True))


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _object(values: dict[str, Any], key: str) -> dict[str, Any]:
    """Return values[key] if it is a dictionary, otherwise {}. For example, --model_args may be stored as a string."""
    return values[key] if isinstance(values.get(key), dict) else {}


def _average(row: Row, tasks: dict[str, dict[str, Any]]) -> None:
    """Fill in the unweighted means over data sets. Their standard error is sqrt(sum of squared errors) / count.

    This holds for independent data sets.
    """
    for column, members in {"micro_avg": TASKS, **GROUPS}.items():
        row.scores[column] = row.errors[column] = None
        if all(name in tasks for name in members):
            row.scores[column] = math.fsum(tasks[name]["score,none"] for name in members) / len(members)
            errors = [tasks[name].get("score_stderr,none") for name in members]
            known = [error for error in errors if _is_number(error)]
            if len(known) == len(errors):
                row.errors[column] = math.hypot(*known) / len(members)
    row.symbols_per_token = tasks.get("cp_para_ru", {}).get("symbol_per_token,none")
    if missing := [name for name in TASKS if name not in tasks]:
        row.notes.append(f"{row.source}: without {', '.join(missing)}; their groups and the Micro-Avg are left out")


def _tell_apart(runs: list[_Run]) -> None:
    """Show the full names of models whose last parts are equal. If the full names are equal too, add the file."""
    names = {run.name for run in runs}
    for run in runs:
        if sum(Path(name).name == run.row.model for name in names) > 1:
            run.row.model = run.name
    shown = [(run.row.model, run.row.shots) for run in runs]
    for run, key in zip(runs, shown, strict=True):
        if shown.count(key) > 1:
            run.row.model += f" ({Path(run.row.source).name})"


def paper_rows(tables: Sequence[int]) -> list[Row]:
    """Return the rows of some of the paper's tables 1-4 (arXiv 2412.21140)."""
    text = (files("lepmerge.comparison") / "darumeru_paper.csv").read_text(encoding="utf-8")
    lines = [line for line in csv.DictReader(text.splitlines()) if int(line["table"]) in tables]
    rows = []
    for line in lines:
        parts = [line["variant"], line["method"].lower()]
        symbols = line["symbols_per_token"]
        rows.append(
            Row(
                model=", ".join([line["model"], *(part for part in parts if part and part not in ("original", "-"))]),
                shots=int(line["shots"]),
                source=f"paper, table {line['table']}",
                scores={column: float(line[column]) for column in COLUMNS},
                errors=dict.fromkeys(COLUMNS),
                symbols_per_token=float(symbols) if symbols else None,
            )
        )
    return rows


def fitting_tables(rows: Sequence[Row]) -> list[int]:
    """Return the paper's tables with the same numbers of shots: 1 (zero-shot, instruct) and 2 (five-shot, base)."""
    shots = {row.shots for row in rows}
    return [table for table, number in ((1, 0), (2, 5)) if number in shots]


def mark(row: Row, reference: Row, column: str) -> str:
    """Return "+" or "-" if a score is significantly higher or lower than the reference's, otherwise "".

    The standard error of the difference is computed as for independent measurements. Since both models answer the same
    documents, this is conservative. Rows of the paper have no standard errors; the reference's are used instead.
    """
    score, other, error = row.scores[column], reference.scores[column], reference.errors[column]
    if score is None or other is None or error is None:
        return ""
    own = row.errors[column] if row.measured else error
    if own is None or abs(score - other) <= SIGNIFICANT * math.hypot(own, error):
        return ""
    return "+" if score > other else "-"


def cells(row: Row, reference: Row) -> list[Any]:
    """Return the cells of a row for the terminal: names, symbols per token, scores with errors and marks."""
    symbols = row.symbols_per_token
    line: list[Any] = [row.model, row.shots, "" if symbols is None else f"{symbols:.2f}"]
    for column in COLUMNS:
        score, error = row.scores[column], row.errors[column]
        parts = [] if score is None else [f"{score:.3f}"]
        parts += [f"±{error:.3f}"] if error is not None else []
        line.append(" ".join([*parts, mark(row, reference, column)]).rstrip())
    return line


def as_records(rows: Sequence[Row], reference: Row) -> list[dict[str, Any]]:
    """Return the rows for JSON and CSV, one flat dictionary each."""
    return [
        {
            "model": row.model,
            "shots": row.shots,
            "source": row.source,
            "data": shown(row.data) or None,
            "symbols_per_token": row.symbols_per_token,
            **{column: row.scores[column] for column in COLUMNS},
            **{f"{column}_stderr": row.errors[column] for column in COLUMNS},
            **{f"{column}_mark": mark(row, reference, column) for column in COLUMNS},
        }
        for row in rows
    ]
