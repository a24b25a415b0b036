"""Errors in the user's input."""


class DarumeruError(ValueError):
    """Data, a tokenizer or a package that the tasks need is missing or wrong. The message names it and the remedy."""
