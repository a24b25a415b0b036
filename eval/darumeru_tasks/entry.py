"""The task classes that the YAML files refer to.

The harness loads this file by its path. The file adds its parent folder to the import path, so that `darumeru_tasks`
can be imported under this name even from a checkout that is not installed (`--include_path`).
"""

import importlib
import sys
from pathlib import Path

_above = str(Path(__file__).resolve().parent.parent)
if _above not in sys.path:
    sys.path.insert(0, _above)
_likelihood = importlib.import_module("darumeru_tasks.likelihood_tasks")
_generation = importlib.import_module("darumeru_tasks.generation_tasks")

ChoiceTask = _likelihood.ChoiceTask
BothOrdersTask = _likelihood.BothOrdersTask
SubjectsTask = _likelihood.SubjectsTask
AnswerTask = _generation.AnswerTask
ExamTask = _generation.ExamTask
SummaryTask = _generation.SummaryTask
SentencesTask = _likelihood.SentencesTask
CopyTask = _generation.CopyTask
