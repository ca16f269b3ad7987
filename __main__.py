"""`python -m ser` is the command `ser`."""

from ser.cli import main

main(prog_name="ser")
