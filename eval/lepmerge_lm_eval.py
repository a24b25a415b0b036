"""Make `lm_eval --tasks darumeru` work by adding the tasks of darumeru_tasks to lm-evaluation-harness.

The harness does not yet let packages offer tasks. So `lepmerge_lm_eval.pth` (from Python 3.15 on `.start`, PEP 829)
calls `install` when Python starts. `install` puts this module in front of the other import finders. When
`lm_eval.tasks.manager` is imported, this finder passes it to darumeru_tasks/registration.py and removes itself. Until
then nothing else is imported. No error leaves this file, and LEPMERGE_LM_EVAL=0 disables it. The module itself is the
finder because a class, or a `try` in the .pth file, would take longer than everything else here
(benchmarks/startup_hook.py).
"""

import sys

MODULE = "lm_eval.tasks.manager"
SWITCH = "LEPMERGE_LM_EVAL"


def install():
    """Register this module as an import finder that waits for the harness's task manager."""
    try:
        import os

        finder = sys.modules[__name__]
        if os.environ.get(SWITCH) != "0" and MODULE not in sys.modules and finder not in sys.meta_path:
            sys.meta_path.insert(0, finder)
    except Exception:  # this runs whenever Python starts: no error may reach other programs
        pass


def find_spec(name, path=None, target=None):
    """Return the spec of the harness's task manager with a loader that adds the tasks, or None for other modules."""
    if name == MODULE:
        try:
            from darumeru_tasks.registration import find_spec

            return find_spec(sys.modules[__name__], name, path, target)
        except Exception:  # whatever is wrong with our package, other finders must load the harness
            pass
    return None
