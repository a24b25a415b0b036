"""Makes `lm_eval --tasks darumeru` work: adds the folder of darumeru_tasks to lm-evaluation-harness's own.

The harness has no way yet for a package to offer tasks. So `lepmerge_lm_eval.pth` (`.start` from Python 3.15 on, PEP
829) calls `install` when Python starts; it puts one small finder before the others, which waits for the import of
`lm_eval.tasks.manager`, changes a method there and one of the command, and goes away. Nothing is imported before
that, no error leaves this file, and LEPMERGE_LM_EVAL=0 switches it off. It steps aside when the harness finds the
tasks by itself.
"""

import sys

MODULE = "lm_eval.tasks.manager"
SWITCH = "LEPMERGE_LM_EVAL"


def install():
    """Wait for the import of the harness's task manager."""
    try:
        import os

        waiting = any(isinstance(finder, _Finder) for finder in sys.meta_path)
        if os.environ.get(SWITCH) != "0" and MODULE not in sys.modules and not waiting:
            sys.meta_path.insert(0, _Finder())
    except Exception:  # Python must start whatever happens here
        pass


class _Finder:
    def find_spec(self, name, path=None, target=None):
        if name != MODULE:
            return None
        for finder in sys.meta_path:
            find_spec = None if finder is self else getattr(finder, "find_spec", None)
            spec = find_spec(name, path, target) if find_spec else None
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = _Loader(spec.loader, self)
                return spec
        return None


class _Loader:
    """The module's own loader, which then changes the module."""

    def __init__(self, loader, finder):
        self._loader = loader
        self._finder = finder

    def __getattr__(self, name):
        return getattr(self._loader, name)

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        module.__spec__.loader = module.__loader__ = self._loader
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        self._loader.exec_module(module)
        try:
            _extend(module.TaskManager)
        except Exception:  # another version of the harness: it works as it would without us
            pass


def _extend(manager):
    import functools
    import inspect

    original_init = manager.__init__
    signature = inspect.signature(original_init)
    if not {"include_path", "include_defaults"} <= signature.parameters.keys():
        return
    has_plugins = _has_plugins(manager)

    @functools.wraps(original_init)
    def __init__(self, *arguments, **keywords):
        call = _with_tasks(signature, self, arguments, keywords)
        if call is None or has_plugins:
            original_init(self, *arguments, **keywords)
            if call is None or "darumeru" in self.all_tasks:
                return
        extended, given = call
        try:
            original_init(*extended.args, **extended.kwargs)
            self.include_path = given
        except Exception:  # the user's folders are at fault, or ours: without ours it becomes clear
            original_init(self, *arguments, **keywords)

    manager.__init__ = __init__
    config = getattr(sys.modules.get("lm_eval.config.evaluate_config"), "EvaluatorConfig", None)
    if hasattr(config, "process_tasks"):
        original_process = config.process_tasks

        @functools.wraps(original_process)
        def process_tasks(self, *arguments, **keywords):
            found = original_process(self, *arguments, **keywords)
            _check([name for name in self.tasks if isinstance(name, str) and name.startswith("darumeru")], found)
            return found

        config.process_tasks = process_tasks


def _has_plugins(manager):
    """Return whether the harness may read the entry points `lm_eval.tasks`, among which ours is."""
    names = (*vars(sys.modules[manager.__module__]), *vars(manager), *manager.__init__.__code__.co_names)
    return any("plugin" in name.lower() or "entry_point" in name.lower() for name in names)


def _with_tasks(signature, *call):
    """Return the call with our folder before the user's, whose tasks win, and theirs; None if ours is not needed."""
    try:
        from importlib.util import find_spec
        from pathlib import Path

        manager, arguments, keywords = call
        bound = signature.bind(manager, *arguments, **keywords)
        bound.apply_defaults()
        given = bound.arguments["include_path"]
        spec = find_spec("darumeru_tasks")
        if not bound.arguments["include_defaults"] or spec is None or not spec.submodule_search_locations:
            return None
        ours = Path(next(iter(spec.submodule_search_locations))).resolve()
        folders = list(given) if isinstance(given, (list, tuple)) else [given] if given else []
        if not ours.is_dir() or ours in [Path(folder).resolve() for folder in folders]:
            return None
        bound.arguments["include_path"] = [ours, *folders]
        return bound, given
    except Exception:  # a wrong call: the harness says what is wrong with it
        return None


def _check(names, manager):
    """End the command `lm_eval run` in one line if data of these tasks is missing, before it loads a model."""
    if names:
        from darumeru_tasks.check import check, show_faults_in_one_line

        show_faults_in_one_line()
        message = check(names, manager)
        if message:
            raise SystemExit(f"error: {message}")
