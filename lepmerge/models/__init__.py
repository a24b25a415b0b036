"""References, files of tensors, models of lazy tensors."""
