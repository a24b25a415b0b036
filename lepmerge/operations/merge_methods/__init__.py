"""Merge methods: one file per method, registered like operations."""
