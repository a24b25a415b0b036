"""Resolve model references, read tensor files, and represent models as lazy tensors."""
