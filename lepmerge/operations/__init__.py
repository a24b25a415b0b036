"""Operations: pure functions, model → model. One file per operation, registered by its decorator."""
