"""Check that the tasks have everything they need before the harness loads a model."""

import sys
from typing import Any

from darumeru_tasks import task
from darumeru_tasks.errors import DarumeruError


def check(names: list[str], manager: Any) -> str | None:
    """Build tasks and groups with the harness's TaskManager. Return an error message, or None if there is no error.

    The harness builds the tasks only after it has loaded the model, which may take long. Their documents are kept in
    task.READY, so that they are not read twice.
    """
    try:
        built = manager.load(names)["tasks"].values()
    except DarumeruError as error:
        return str(error)
    task.READY.update({made.config.task: made.dataset for made in built})
    return None


def show_faults_in_one_line() -> None:
    """Show later errors in the user's input as one line without a traceback."""
    before = sys.excepthook

    def excepthook(kind: type[BaseException], error: BaseException, traceback: Any) -> None:
        if isinstance(error, DarumeruError):
            print(f"error: {error}", file=sys.stderr)
        else:
            before(kind, error, traceback)

    sys.excepthook = excepthook
