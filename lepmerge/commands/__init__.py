"""The subcommands that lepmerge/commands/main.py puts together, one file per command or group."""
