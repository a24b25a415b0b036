"""Makes `lm_eval --tasks darumeru` work: adds the tasks of darumeru_tasks to lm-evaluation-harness's own.

The harness has no way yet for a package to offer tasks. So `lepmerge_lm_eval.pth` (`.start` from Python 3.15 on, PEP
829) calls `install` when Python starts. It puts this module before the other finders. As a finder, it waits for the
import of `lm_eval.tasks.manager`, hands it to darumeru_tasks/registration.py and goes away. Nothing is imported before
that, no error leaves this file, and LEPMERGE_LM_EVAL=0 switches it off. A class of its own, or a `try` in the .pth
file, would take longer than all that this file does: benchmarks/startup_hook.py.
"""

import sys

MODULE = "lm_eval.tasks.manager"
SWITCH = "LEPMERGE_LM_EVAL"


def install():
    """Wait for the import of the harness's task manager."""
    try:
        import os

        finder = sys.modules[__name__]
        if os.environ.get(SWITCH) != "0" and MODULE not in sys.modules and finder not in sys.meta_path:
            sys.meta_path.insert(0, finder)
    except Exception:  # Python must start whatever happens here
        pass


def find_spec(name, path=None, target=None):
    """Return what the other finders find for the harness's task manager, with a loader that adds the tasks."""
    if name == MODULE:
        try:
            from darumeru_tasks.registration import find_spec

            return find_spec(sys.modules[__name__], name, path, target)
        except Exception:  # the other finders go on as if this one were not there
            pass
    return None
