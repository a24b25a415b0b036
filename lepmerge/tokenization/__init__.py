"""Corpus → tokenizer: train, extend, optimize, and report."""
