"""Looks for what tasks need before the harness loads a model."""

import sys
from typing import Any

from darumeru_tasks import task
from darumeru_tasks.errors import DarumeruError


def check(names: list[str], manager: Any) -> str | None:
    """Build tasks and groups of the harness's TaskManager; return what is wrong, None if nothing is.

    The harness builds them after it has loaded the model, which may take long; it will find their documents ready.
    """
    try:
        built = manager.load(names)["tasks"].values()
    except DarumeruError as error:
        return str(error)
    task.READY.update({made.config.task: made.dataset for made in built})
    return None


def show_faults_in_one_line() -> None:
    """Let the command end without a traceback where a later fault is the user's."""
    before = sys.excepthook

    def excepthook(kind: type[BaseException], error: BaseException, traceback: Any) -> None:
        if isinstance(error, DarumeruError):
            print(f"error: {error}", file=sys.stderr)
        else:
            before(kind, error, traceback)

    sys.excepthook = excepthook
