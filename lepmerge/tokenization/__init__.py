"""Make a tokenizer from a corpus: train, extend, optimize, and report on tokenizers."""
