"""Embedding-only training: train the input and output embeddings of a model for a new vocabulary."""
