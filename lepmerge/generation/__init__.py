"""Chats from prompts: a model answers, filters and a grader drop bad answers, copies are added."""
