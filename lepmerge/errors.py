"""Errors in the user's input. Each message names the file, tensor or key, the shapes, and the remedy."""

LONGEST_LINE = 2000


def _one_line(text: str) -> str:
    """Return a text on one line. Names in damaged files can contain control characters, or be megabytes long."""
    if len(text) > LONGEST_LINE:
        text = f"{text[: LONGEST_LINE - 500]} … {text[-400:]}"
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


class LepmergeError(Exception):
    """An error in lepmerge's input. Commands show it as one line, without a traceback."""

    exit_code = 1
    has_lines = False

    def __str__(self) -> str:
        message = super().__str__()
        return "\n".join(map(_one_line, message.split("\n"))) if self.has_lines else _one_line(message)


class RecipeError(LepmergeError):
    """A recipe is invalid: unknown key, wrong type, unknown model name, bad expression. One line per error."""

    exit_code = 2
    has_lines = True


class OptionError(LepmergeError):
    """Options of a command contradict each other, or one of them has an impossible value."""

    exit_code = 2


class ReferenceNotFound(LepmergeError):
    """A model reference names neither a local folder nor a reachable model on the Hub."""


class CheckpointError(LepmergeError):
    """A checkpoint is damaged, incomplete, unsafe to read, or of a kind that lepmerge cannot transform."""


class VocabularyError(LepmergeError):
    """A tokenizer cannot be read, or two vocabularies do not belong together."""


class FitError(LepmergeError):
    """A linear map cannot be fitted on the rows that two models share."""


class OutputError(LepmergeError):
    """The output exists already, is unsafe to write, or does not fit on the disk."""


class CorpusError(LepmergeError):
    """A corpus is missing, empty, binary, not UTF-8, or lacks the column."""


class ResultError(LepmergeError):
    """A file is not a result of lm-evaluation-harness with Darumeru tasks."""


class TrainingError(LepmergeError):
    """A training cannot continue: its loss is not finite or diverges, memory ran out, or it was asked to stop."""


class Stopped(TrainingError):
    """A signal asked the training to stop. Its checkpoint contains what it has learned so far."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal  # as shells count: 130 for Ctrl-C, 143 for SIGTERM


class ProcessLost(LepmergeError):
    """Another process of the run has ended, so this one cannot continue."""


class ComparisonError(LepmergeError):
    """Models cannot be compared: too little text, a prompt file with an invalid row, no chat template."""


class ChainError(LepmergeError):
    """A command of a project failed. Its own message came before."""


class GenerationError(LepmergeError):
    """Answers cannot be generated: no usable prompt, a failing server, or a grading prompt without its placeholders."""
