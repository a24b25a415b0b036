"""The user's faults: each message names the file, tensor or key, the shapes, and the remedy."""


class LepmergeError(Exception):
    """A fault in what lepmerge was given; shown as one line, without a traceback."""

    exit_code = 1


class RecipeError(LepmergeError):
    """The recipe cannot be understood: unknown key, wrong type, unknown model name, bad expression."""

    exit_code = 2


class OptionError(LepmergeError):
    """Options of a command contradict one another, or one of them has an impossible value."""

    exit_code = 2


class ReferenceNotFound(LepmergeError):
    """A model reference names neither a local folder nor a reachable model on the Hub."""


class CheckpointError(LepmergeError):
    """A checkpoint is damaged, incomplete, unsafe to read, or of a kind that lepmerge does not transform."""


class VocabularyError(LepmergeError):
    """A tokenizer cannot be read, or two vocabularies do not belong together."""


class FitError(LepmergeError):
    """A linear map cannot be fitted on the rows that two models share."""


class OutputError(LepmergeError):
    """The output folder is unsafe to write, already there, or does not fit on the disk."""


class CorpusError(LepmergeError):
    """A corpus is missing, empty, binary, not UTF-8, or has no such column."""


class ResultError(LepmergeError):
    """A file is no result of lm-evaluation-harness with Darumeru tasks."""


class TrainingError(LepmergeError):
    """A training cannot go on: its loss is not finite or diverges, memory is out, or it was asked to stop."""


class Stopped(TrainingError):
    """A training was asked to stop by a signal; what it learned is in its checkpoint."""

    exit_code = 143


class ComparisonError(LepmergeError):
    """Models cannot be compared on what was given: too little text, a prompt file with a bad row, no chat template."""


class GenerationError(LepmergeError):
    """Answers cannot be generated: no usable prompt, a server that fails, a grader's prompt without its places."""
