"""The run that owns an output folder, the files it carries, plots."""
