"""Where the YAML files find the task classes.

The harness loads this file by its path. It puts the folder above on the import path, so that `darumeru_tasks` is a
package under one name also in a checkout that is not installed (`--include_path`), and the rest imports it plainly.
"""

import importlib
import sys
from pathlib import Path

_above = str(Path(__file__).resolve().parent.parent)
if _above not in sys.path:
    sys.path.insert(0, _above)
_task = importlib.import_module("darumeru_tasks.task")

ChoiceTask = _task.ChoiceTask
BothOrdersTask = _task.BothOrdersTask
SubjectsTask = _task.SubjectsTask
AnswerTask = _task.AnswerTask
ExamTask = _task.ExamTask
SummaryTask = _task.SummaryTask
SentencesTask = _task.SentencesTask
CopyTask = _task.CopyTask
