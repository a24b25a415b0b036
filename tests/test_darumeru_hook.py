"""The import hook behind `lm_eval --tasks darumeru`: what it adds to the harness, and that nobody else notices."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EVAL = ROOT / "eval"
GROUPS = [f"darumeru{part}" for part in ("", "_copy_en", "_copy_ru", "_mera", "_mmlu", "_sum")]
MANAGER = """
class TaskManager:
    calls = []

    def __init__(self, verbosity=None, include_path=None, include_defaults=True, metadata=None):
        self.include_path = include_path
        self.metadata = metadata
        self.calls.append(include_path)
        self.all_tasks = ["built-in"] * include_defaults + [str(path) for path in include_path or []]

    def match_tasks(self, task_list):
        return [task for task in task_list if task in self.all_tasks]
"""
"""A small harness for cases that the real one does not have or is slow at."""


def python(program: str, *flags: str, folder: Path | None = None, **environment: str):
    """Run a program, with `folder` before everything else on the import path; return what subprocess.run does."""
    inherited = {key: value for key, value in os.environ.items() if key != "LEPMERGE_LM_EVAL"}
    paths = {"PYTHONPATH": str(folder)} if folder else {}
    return subprocess.run(
        [sys.executable, *flags, "-c", program],
        env={**inherited, **paths, **environment}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def output(program: str, *flags: str, folder: Path | None = None, **environment: str) -> str:
    done = python(program, *flags, folder=folder, **environment)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done.stdout.strip()


@pytest.fixture
def harness(tmp_path: Path):
    """Writes a package `lm_eval` with this text as lm_eval.tasks.manager; returns the folder above."""

    def write(manager: str = MANAGER, **modules: str) -> Path:
        tasks = tmp_path / "harness" / "lm_eval" / "tasks"
        tasks.mkdir(parents=True)
        (tasks.parent / "__init__.py").touch()
        first = "from lm_eval.tasks.manager import TaskManager\n"
        for name, text in {"__init__": first, "manager": manager, **modules}.items():
            (tasks / f"{name}.py").write_text(text)
        return tmp_path / "harness"

    return write


SHOW_INCLUDED = "from lm_eval.tasks import TaskManager; print(TaskManager().all_tasks)"


def test_the_harness_finds_the_tasks(tmp_path: Path) -> None:
    """This uses the real harness, without its own folder of tasks, which takes seconds to read."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "theirs.yaml").write_text(
        "task: darumeru_rcb\ndataset_path: json\noutput_type: loglikelihood\n"
    )
    program = f"""
import json, pickle
from lm_eval.tasks import TaskManager, manager
manager.__file__ = {str(tmp_path / "none" / "manager.py")!r}
plain, own = TaskManager(), TaskManager(None, {str(tmp_path / "own")!r}, metadata={{"a": 1}})
again = pickle.loads(pickle.dumps(plain))
print(json.dumps([
    plain.all_groups, len(plain.all_subtasks), plain.include_path, again.all_tasks == plain.all_tasks,
    own.all_groups, len(own.all_subtasks), own.include_path, own.metadata,
    own.task_index["darumeru_rcb"].yaml_path.name,
    TaskManager(include_path=[{str(EVAL / "darumeru_tasks")!r}]).all_groups,
    TaskManager(include_defaults=False).all_tasks,
]))
"""
    done = python(program)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found[:4] == [GROUPS, 17, None, True]
    assert found[4:9] == [GROUPS, 17, str(tmp_path / "own"), {"a": 1}, "theirs.yaml"]
    assert found[9:] == [GROUPS, []]


def test_switched_off(harness) -> None:
    folder = harness()
    assert str(EVAL / "darumeru_tasks") in output(SHOW_INCLUDED, folder=folder)
    assert output(SHOW_INCLUDED, folder=folder, LEPMERGE_LM_EVAL="0") == "['built-in']"


def test_the_users_folders_come_last(harness) -> None:
    program = (
        "from lm_eval.tasks import TaskManager\nfrom pathlib import Path\n"
        "print([TaskManager(include_path=given).all_tasks[-1] for given in (['x'], ['y', 'z'], [Path('w')])])"
    )
    assert output(program, folder=harness()) == "['x', 'z', 'w']"


def test_our_folder_given_by_the_user_is_read_once(harness) -> None:
    folder = EVAL / "darumeru_tasks"
    program = f"from lm_eval.tasks import TaskManager; print(TaskManager(include_path=[{str(folder)!r}]).all_tasks)"
    assert output(program, folder=harness()) == f"['built-in', '{folder}']"


def test_processes_started_by_the_harness_have_the_tasks(harness) -> None:
    program = """
import multiprocessing
from lm_eval.tasks import TaskManager

def count(manager):
    return manager.all_tasks == TaskManager().all_tasks

if __name__ == "__main__":
    for method in ("spawn", "fork"):
        with multiprocessing.get_context(method).Pool(1) as pool:
            print(pool.map(count, [TaskManager()]), len(TaskManager().all_tasks))
"""
    folder = harness()
    (folder / "program.py").write_text(program)
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, folder / "program.py"], capture_output=True, text=True, env=environment, timeout=100
    )
    assert done.stdout == "[True] 2\n[True] 2\n", done.stderr


FINDS_PLUGINS = MANAGER.replace(
    "        self.include_path = include_path\n",
    "        self.include_path = include_path\n"
    "        from lm_eval.tasks._plugins import task_folders\n"
    "        include_path = [*task_folders(), *(include_path or [])]\n",
)


def test_steps_aside_when_the_harness_has_plugins(harness) -> None:
    """A harness that finds the tasks itself is called once, with the user's own arguments."""
    folder = harness(FINDS_PLUGINS, _plugins="def task_folders():\n    return ['darumeru']\n")
    program = f"{SHOW_INCLUDED}; print(TaskManager.calls)"
    assert output(program, folder=folder) == "['built-in', 'darumeru']\n[['darumeru']]"


def test_plugins_of_others_do_not_take_the_tasks_away(harness) -> None:
    folder = harness(FINDS_PLUGINS, _plugins="def task_folders():\n    return []\n")
    assert str(EVAL / "darumeru_tasks") in output(SHOW_INCLUDED, folder=folder)


def test_our_entry_point_leads_to_the_tasks() -> None:
    """A harness with plugins will read this entry point."""
    program = (
        "from importlib.metadata import entry_points\n"
        "(point,) = entry_points(group='lm_eval.tasks')\n"
        "print(point.name, list(point.load().__path__))"
    )
    assert output(program) == f"darumeru ['{EVAL / 'darumeru_tasks'}']"


STRANGE = {
    "cannot be imported": "raise ImportError('this harness is broken')",
    "is not Python": "def",
    "has no manager": "",
    "has a function": "def TaskManager():\n    pass",
    "has another signature": "class TaskManager:\n    def __init__(self):\n        self.all_tasks = 'all'\n",
    "takes one folder": MANAGER.replace("include_path or []", "(include_path or '').split(':')"),
}


@pytest.mark.parametrize("what", STRANGE)
def test_a_strange_harness_does_what_it_does_without_us(harness, what: str) -> None:
    folder = harness(STRANGE[what])
    with_hook, without = (python(SHOW_INCLUDED, folder=folder, LEPMERGE_LM_EVAL=switch) for switch in ("1", "0"))
    assert (with_hook.returncode, with_hook.stdout) == (without.returncode, without.stdout)
    assert with_hook.stderr.splitlines()[-1:] == without.stderr.splitlines()[-1:]


def test_a_wrong_call_fails_as_it_does_without_us(harness) -> None:
    folder = harness()
    program = "from lm_eval.tasks import TaskManager; TaskManager(folders=1)"
    with_hook, without = (python(program, folder=folder, LEPMERGE_LM_EVAL=switch) for switch in ("1", "0"))
    assert with_hook.returncode == without.returncode == 1
    assert with_hook.stderr.splitlines()[-1] == without.stderr.splitlines()[-1]


def test_the_finder_goes_away_and_the_module_has_its_own_loader(harness) -> None:
    program = """
import importlib.util, inspect, sys
import lepmerge_lm_eval
lepmerge_lm_eval.install()
finders = lambda: sys.meta_path.count(lepmerge_lm_eval)
before = finders()
looked_up = importlib.util.find_spec("lm_eval.tasks.manager").origin
import lm_eval.tasks.manager as manager
lepmerge_lm_eval.install()
source = inspect.getsource(manager) == open(manager.__file__).read()
print(before, finders(), looked_up == manager.__file__, type(manager.__loader__).__name__,
      manager.__spec__.loader is manager.__loader__, source)
"""
    assert output(program, folder=harness()) == "1 0 True SourceFileLoader True True"


def test_looking_for_the_module_does_not_spend_the_hook(harness) -> None:
    program = (
        "import importlib.util\nimportlib.util.find_spec('lm_eval.tasks.manager')\n"
        "from lm_eval.tasks.manager import TaskManager; print(TaskManager().all_tasks)"
    )
    assert str(EVAL / "darumeru_tasks") in output(program, folder=harness(__init__=""))


STATE = """
import sys
before = sorted(sys.modules)
import builtins, codecs, signal, warnings, importlib.util, json, email.message
errors = []
for name in ("no_such_module", "json.no_such_module", "lm_eval_", "email.message.x"):
    try:
        __import__(name)
    except ImportError as error:
        errors.append([type(error).__name__, str(error), error.name])
finders = [finder for finder in sys.meta_path if getattr(finder, "__name__", "") != "lepmerge_lm_eval"]
specs = [importlib.util.find_spec(name) for name in ("json", "sys", "zipimport", "no_such_module")]
print(json.dumps({
    "modules": before, "after": sorted(sys.modules), "path": sys.path, "finders": [str(finder) for finder in finders],
    "path_hooks": [str(hook).split(" at ")[0] for hook in sys.path_hooks], "errors": errors,
    "specs": [str(spec).split(" object at ")[0] for spec in specs],
    "builtins": sorted(vars(builtins)), "filters": [str(entry) for entry in warnings.filters],
    "hooks": [sys.excepthook is sys.__excepthook__, sys.displayhook is sys.__displayhook__, sys.gettrace()],
    "signals": [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)], "argv": sys.argv,
    "flags": str(sys.flags), "limits": [sys.getrecursionlimit(), sys.getswitchinterval()],
}))
"""


def test_other_programs_run_as_before(tmp_path: Path) -> None:
    """The state of Python without site packages, and with a folder of them that has nothing or the hook."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "nothing.pth").write_text("import sys\n")
    program = f"import site; site.addsitedir({str(site)!r})\n{STATE}"
    without = json.loads(output(program, "-I", "-S"))
    for name in ("lepmerge_lm_eval.py", "lepmerge_lm_eval.pth", "lepmerge_lm_eval.start"):
        shutil.copy(EVAL / name, site)
    with_hook = json.loads(output(program, "-I", "-S"))
    assert set(with_hook["modules"]) - set(without["modules"]) == {"lepmerge_lm_eval"}
    for modules in ("modules", "after"):
        with_hook[modules].remove("lepmerge_lm_eval")
    assert with_hook == without


def test_python_without_site_packages_has_no_hook() -> None:
    program = "import sys; print('lepmerge_lm_eval' in sys.modules)"
    assert [output(program), output(program, "-I"), output(program, "-S")] == ["True", "True", "False"]


def test_a_checkout_that_is_gone_is_no_fault(harness) -> None:
    """An editable install leaves the hook behind, without the tasks, when its folder is removed by hand."""
    folder = harness()
    for name in ("lepmerge_lm_eval.py", "lepmerge_lm_eval.pth"):
        shutil.copy(EVAL / name, folder)
    program = f"import site; site.addsitedir({str(folder)!r}); {SHOW_INCLUDED}"
    assert output(program, "-I", "-S") == "['built-in']"


def test_a_fault_of_the_hook_stops_no_program(tmp_path: Path) -> None:
    shutil.copy(EVAL / "lepmerge_lm_eval.pth", tmp_path)
    (tmp_path / "lepmerge_lm_eval.py").write_text(
        (EVAL / "lepmerge_lm_eval.py").read_text().replace("import os", "1 / 0")
    )
    assert output(f"import site; site.addsitedir({str(tmp_path)!r}); print('on')", "-I", "-S") == "on"


def test_the_start_file_names_the_function() -> None:
    """PEP 829: `module:callable`, a line each; read from Python 3.15 on in place of the .pth."""
    program = """
import importlib
for line in open({path!r}).read().splitlines():
    module, _, name = line.partition(":")
    print(callable(getattr(importlib.import_module(module), name)))
""".format(path=str(EVAL / "lepmerge_lm_eval.start"))
    assert output(program) == "True"
