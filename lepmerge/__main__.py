"""`python -m lepmerge`, which `accelerate launch -m` needs."""

from lepmerge.cli import main

main(prog_name="lepmerge")
