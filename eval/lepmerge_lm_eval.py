"""Makes `lm_eval --tasks darumeru` work: adds the tasks of darumeru_tasks to lm-evaluation-harness's own.

The harness has no way yet for a package to offer tasks. So `lepmerge_lm_eval.pth` (`.start` from Python 3.15 on, PEP
829) calls `install` when Python starts. It puts one small finder before the others, which waits for the import of
`lm_eval.tasks.manager`, hands it to darumeru_tasks/registration.py and goes away. Nothing is imported before that, no
error leaves this file, and LEPMERGE_LM_EVAL=0 switches it off.
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
        if name == MODULE:
            try:
                from darumeru_tasks.registration import find_spec

                return find_spec(self, name, path, target)
            except Exception:  # the other finders go on as if this one were not there
                pass
        return None
