"""The difference of two models as a PEFT adapter."""
