"""Make `python -m lepmerge` work. `accelerate launch -m` needs it."""

from lepmerge.commands.main import main

main(prog_name="lepmerge")
