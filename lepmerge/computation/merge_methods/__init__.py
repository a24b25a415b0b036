"""Merge methods. Each has its own file and is registered like an operation."""
