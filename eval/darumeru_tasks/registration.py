"""Add this folder to those from which lm-evaluation-harness reads its tasks. lepmerge_lm_eval.py calls this module.

It does nothing if the harness finds the tasks itself through the entry point `lm_eval.tasks`.
"""

import functools
import inspect
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = Path(__file__).resolve().parent


def find_spec(finder: Any, name: str, path: Any, target: Any) -> ModuleSpec | None:
    """Return the spec that the other finders find, with a loader that removes `finder` and changes the module."""
    for other in sys.meta_path:
        find = None if other is finder else getattr(other, "find_spec", None)
        spec = find(name, path, target) if find else None
        if spec is not None:
            if hasattr(spec.loader, "exec_module"):
                spec.loader = _Loader(spec.loader, finder)
            return spec
    return None


class _Loader:
    """Wrap the module's loader: load the module, then change it."""

    def __init__(self, loader: Any, finder: Any) -> None:
        self._loader = loader
        self._finder = finder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: Any) -> None:
        module.__spec__.loader = module.__loader__ = self._loader
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        self._loader.exec_module(module)
        try:
            _extend_manager(module.TaskManager)
            _extend_command(sys.modules["lm_eval.config.evaluate_config"])
        except (AttributeError, KeyError, TypeError, ValueError):  # another version of the harness: change nothing
            pass


def _extend_manager(manager: Any) -> None:
    original = manager.__init__
    signature = inspect.signature(original)
    if not {"include_path", "include_defaults"} <= signature.parameters.keys():
        return
    has_plugins = _has_plugins(manager)

    @functools.wraps(original)
    def __init__(self: Any, *arguments: Any, **keywords: Any) -> None:
        call = _with_folder(signature, self, arguments, keywords)
        if call is None or has_plugins:
            original(self, *arguments, **keywords)
            if call is None or "darumeru" in self.all_tasks:
                return
        extended, given = call
        try:
            original(*extended.args, **extended.kwargs)
            self.include_path = given
        except Exception:  # of any class, from any task file. Without our folder, the user's errors show
            original(self, *arguments, **keywords)

    manager.__init__ = __init__


def _has_plugins(manager: Any) -> bool:
    """Return whether the harness seems to read entry points `lm_eval.tasks`. Ours is one of them."""
    names = (*vars(sys.modules[manager.__module__]), *vars(manager), *manager.__init__.__code__.co_names)
    return any("plugin" in name.lower() or "entry_point" in name.lower() for name in names)


def _with_folder(
    signature: inspect.Signature, manager: Any, arguments: Any, keywords: Any
) -> tuple[inspect.BoundArguments, Any] | None:
    """Return the call with our folder added, and the folders that the user gave; None if ours is not needed.

    Our folder comes before the user's, so that the user's tasks win over ours.
    """
    try:
        call = signature.bind(manager, *arguments, **keywords)
        call.apply_defaults()
        given = call.arguments["include_path"]
        folders = list(given) if isinstance(given, list | tuple) else [given] if given else []
        if not call.arguments["include_defaults"] or FOLDER in [Path(folder).resolve() for folder in folders]:
            return None
    except TypeError:  # an invalid call: the harness reports it
        return None
    call.arguments["include_path"] = [FOLDER, *folders]
    return call, given


def _extend_command(module: Any) -> None:
    """Make the command `lm_eval run` check the data before it loads a model, and report errors in one line."""
    original = module.EvaluatorConfig.process_tasks

    @functools.wraps(original)
    def process_tasks(self: Any, *arguments: Any, **keywords: Any) -> Any:
        manager = original(self, *arguments, **keywords)
        names = [name for name in self.tasks if isinstance(name, str) and name.startswith("darumeru")]
        if names:
            from darumeru_tasks.check import check, show_faults_in_one_line

            show_faults_in_one_line()
            if message := check(names, manager):
                raise SystemExit(f"error: {message}")
        return manager

    module.EvaluatorConfig.process_tasks = process_tasks
