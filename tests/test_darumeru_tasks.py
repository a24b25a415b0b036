"""What lm-evaluation-harness and a reader expect of every task: its own generic tests, versions, names, the README."""

import ast
import importlib.metadata
import inspect
import re
import sys
import tarfile
from itertools import islice
from pathlib import Path

import darumeru_setting
import pico
import pytest
import yaml
from darumeru_setting import NAMES, ROOT, load

FOLDER = ROOT / "eval" / "darumeru_tasks"
LEAVES = [f"darumeru_{name}" for name in NAMES]
GROUPS = ["darumeru", *(f"darumeru_{name}" for name in ("mera", "mmlu", "sum", "copy_en", "copy_ru"))]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("tokenizer")
    pico.save_tokenizer(pico.byte_level(darumeru_setting.texts(), 600), folder)
    return load(pretrained=str(folder))


def generic_tests() -> dict:
    """Return name → method of the class BaseTasks of the harness's test suite, of the version that is installed.

    The suite is in the source distribution only. Its module asks the Hub for another task when it is imported, so the
    class alone is taken out of it.
    """
    version = importlib.metadata.version("lm_eval")
    path = Path(sys.prefix) / "sdist" / f"lm_eval-{version}.tar.gz"
    if not path.exists():
        pytest.fail(f"pip download --no-deps --no-binary lm_eval --dest {path.parent} lm_eval=={version}")
    with tarfile.open(path) as archive:
        member = archive.extractfile(f"lm_eval-{version}/tests/test_tasks.py")
        assert member is not None
        module = ast.parse(member.read())
    from lm_eval.api.task import ConfigurableTask

    classes = [node for node in module.body if isinstance(node, ast.ClassDef) and node.name == "BaseTasks"]
    names = {"islice": islice, "pytest": pytest, "ConfigurableTask": ConfigurableTask}
    exec(compile(ast.Module(classes, []), str(path), "exec"), names)
    return dict(inspect.getmembers(names["BaseTasks"](), inspect.ismethod))


@pytest.mark.slow
def test_the_generic_tests_of_the_harness(tasks):
    methods = generic_tests()
    assert len(methods) >= 13 and {"test_download", "test_build_all_requests", "test_construct_requests"} <= set(
        methods
    )
    for name in NAMES:
        for method in methods.values():
            known = {"task_class": tasks[name], "limit": 10}
            method(**{parameter: known[parameter] for parameter in inspect.signature(method).parameters})


@pytest.mark.parametrize("name", NAMES)
def test_what_the_harness_asks_of_a_task(tasks, name):
    """Data can be loaded again; splits and documents agree; texts, targets, choices and requests have their types."""
    task = tasks[name]
    task.download(task.config.dataset_kwargs)
    documents = list(islice(task.test_docs(), 10))
    assert task.has_test_docs() and task.config.test_split in task.dataset and len(documents) == 10
    assert not task.has_training_docs() and not task.has_validation_docs() and not task.should_decontaminate()
    for document in documents:
        text, target = task.doc_to_text(document), task.doc_to_target(document)
        assert isinstance(text, str) and text and not text.endswith(" ") and isinstance(target, str)
        assert target or name == "sum_extractive"
        if task.OUTPUT_TYPE == "multiple_choice":
            assert target in task.doc_to_choice(document)
        requests = task.construct_requests(doc=document, ctx=text)
        for request in requests if isinstance(requests, list) else [requests]:
            kind = "generate_until" if task.OUTPUT_TYPE == "generate_until" else "loglikelihood"
            assert request.request_type == kind and request.doc is document
    task.build_all_requests(limit=10, rank=1, world_size=2)
    assert {instance.doc_id for instance in task.instances} == {1, 3, 5, 7, 9}
    assert list(task.aggregation())[0] == "score" and task.higher_is_better() == dict.fromkeys(task.aggregation(), True)


def test_each_yaml_file_has_a_version_and_is_named_for_its_task():
    files = sorted(FOLDER.glob("*.yaml"))
    assert sorted(path.stem for path in files) == sorted([*LEAVES, *GROUPS])
    for path in files:
        config = yaml.load(re.sub(r"!function", "", path.read_text("utf-8")), yaml.SafeLoader)
        assert config["metadata"] == {"version": 1.0}
        assert path.stem == config.get("task" if path.stem in LEAVES else "group")


def test_groups_have_the_benchmark_s_data_sets():
    from lm_eval.api.group import Group

    loaded = darumeru_setting.manager().load(["darumeru"])
    assert sorted(loaded["tasks"]) == sorted(LEAVES) and sorted(loaded["groups"]) == sorted(GROUPS)
    sizes = {name: len(group.get_all_tasks()) for name, group in loaded["groups"].items() if isinstance(group, Group)}
    assert sizes == dict(zip(GROUPS, [17, 8, 3, 2, 2, 2], strict=True))


def test_the_readme_names_every_group_task_metric_and_file(tasks):
    text = (FOLDER / "README.md").read_text("utf-8")
    assert all(f"`{name}`" in text for name in (*LEAVES, *GROUPS))
    rows = [line for line in text.splitlines() if line.startswith("| `darumeru_")]
    for name in NAMES:
        row = next(row for row in rows if f"`darumeru_{name}`" in row)
        named = set(re.findall(r"`(\w+)`", row.split("|")[-2]))
        assert named == set(tasks[name].aggregation()) - {"score"}, name
    for heading in (
        "### Paper",
        "### Citation",
        "#### Groups",
        "#### Tags",
        "#### Tasks",
        "### Checklist",
        "### Changelog",
    ):
        assert f"\n{heading}\n" in text
    for folder in {task.options["folder"] or task.config.dataset_name for task in tasks.values()}:
        assert folder in text


def test_the_readme_s_sampling_is_understood(tasks):
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.utils import simple_parse_args_string

    line = re.search(r"--gen_kwargs (\S+)", (FOLDER / "README.md").read_text("utf-8"))
    assert line is not None
    task = tasks["use"]
    task.set_config("generation_kwargs", simple_parse_args_string(line[1]), update=True)
    arguments = normalize_gen_kwargs(task.construct_requests(task.test_docs()[0], "x").args[1])
    assert arguments == {
        "do_sample": True, "temperature": 0.1, "top_k": 40, "top_p": 0.9, "max_gen_toks": 64, "until": ["\n", "\n\n"],
    }  # fmt: skip
