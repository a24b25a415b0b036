"""Operations: pure functions from a model to a model. Each has its own file and is registered by its decorator."""
