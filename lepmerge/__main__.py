"""`python -m lepmerge`, which `accelerate launch -m` needs."""

from lepmerge.commands.main import main

main(prog_name="lepmerge")
