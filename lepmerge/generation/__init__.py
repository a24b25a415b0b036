"""Make chats from prompts: a model answers, filters and a grader drop bad answers, copies of passages are added."""
