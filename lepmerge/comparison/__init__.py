"""Compare models on texts, chats and a task, to measure what an adaptation gained and what it cost."""
