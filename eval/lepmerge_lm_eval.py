"""Makes `lm_eval --tasks darumeru` work: adds the folder of darumeru_tasks to lm-evaluation-harness's own.

The harness has no way yet for a package to offer tasks. So `lepmerge_lm_eval.pth` (`.start` from Python 3.15 on, PEP
829) calls `install` when Python starts; it puts one small finder before the others, which waits for the import of
`lm_eval.tasks.manager`, changes two of its methods and goes away. Nothing is imported before that, no error leaves
this file, and LEPMERGE_LM_EVAL=0 switches it off. It steps aside when the harness finds the tasks by itself.
"""

import sys

MODULE = "lm_eval.tasks.manager"
SWITCH = "LEPMERGE_LM_EVAL"


def install():
    """Wait for the import of the harness's task manager."""
    try:
        import os

        if os.environ.get(SWITCH) != "0" and MODULE not in sys.modules:
            sys.meta_path.insert(0, _Finder())
    except Exception:  # Python must start whatever happens here
        pass


class _Finder:
    def find_spec(self, name, path=None, target=None):
        if name != MODULE:
            return None
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        for finder in list(sys.meta_path):
            find_spec = getattr(finder, "find_spec", None)
            spec = find_spec(name, path, target) if find_spec else None
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader)
                return spec
        return None


class _Loader:
    """The module's loader, which changes the module once it is loaded."""

    def __init__(self, loader):
        self._loader = loader

    def __getattr__(self, name):
        return getattr(self._loader, name)

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        try:
            _extend(module.TaskManager)
        except Exception:  # another version of the harness: it works as it would without us
            pass


def _extend(manager):
    import functools
    import inspect

    original_init, original_match = manager.__init__, manager.match_tasks
    signature = inspect.signature(original_init)

    @functools.wraps(original_init)
    def __init__(self, *arguments, **keywords):
        call = signature.bind(self, *arguments, **keywords)
        call.apply_defaults()
        given = call.arguments["include_path"]
        extended = _with_tasks(given) if call.arguments["include_defaults"] else given
        if extended is given or _plugins_have_tasks(manager):
            original_init(self, *arguments, **keywords)
            return
        call.arguments["include_path"] = extended
        original_init(*call.args, **call.kwargs)
        self.include_path = given

    @functools.wraps(original_match)
    def match_tasks(self, task_list):
        found = original_match(self, task_list)
        _check_data(self, [name for name in found if name.startswith("darumeru")])
        return found

    manager.__init__, manager.match_tasks = __init__, match_tasks


def _with_tasks(given):
    """Return the folders to include, ours first so that the user's win; `given` itself if ours is not needed."""
    from importlib.util import find_spec
    from pathlib import Path

    spec = find_spec("darumeru_tasks")
    if spec is None or not spec.submodule_search_locations:
        return given
    ours = Path(next(iter(spec.submodule_search_locations))).resolve()
    folders = list(given) if isinstance(given, (list, tuple)) else [given] if given else []
    return given if ours in [Path(folder).resolve() for folder in folders] else [ours, *folders]


def _plugins_have_tasks(manager):
    """Return whether the harness reads the entry points `lm_eval.tasks`, among which ours is."""
    module = sys.modules[manager.__module__]
    return any("plugin" in name.lower() or "entry_point" in name.lower() for name in (*vars(module), *vars(manager)))


def _check_data(manager, names):
    """End the command in one line if data of these tasks is missing, before it loads a model."""
    if not names or "lm_eval.config.evaluate_config" not in sys.modules:  # only the command `lm_eval run` loads it
        return
    from darumeru_tasks.check import check

    message = check(names, manager)
    if message:
        raise SystemExit(f"error: {message}")
