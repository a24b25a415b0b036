"""Computations behind the operations: pure functions from models to models. Only this side imports torch."""
