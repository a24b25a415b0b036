"""The user's faults."""


class DarumeruError(ValueError):
    """Data, a tokenizer or a package that the tasks need is missing or wrong; the message names it and the remedy."""
