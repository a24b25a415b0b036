"""Embedding-only training: the input and output embeddings of a base model learn a new vocabulary from plain text."""
