"""Darumeru, a benchmark of Russian adaptation, as tasks of lm-evaluation-harness (see README.md)."""
