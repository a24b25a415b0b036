"""Command groups that lepmerge/commands/main.py puts together: one file a group."""
