"""What an adaptation gained and what it cost: models side by side on texts, chats and a task."""
