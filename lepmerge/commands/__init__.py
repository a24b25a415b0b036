"""Command groups that lepmerge/cli.py puts together: one file a group."""
