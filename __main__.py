"""`python -m ser` is the command `ser`."""

from ser.cli import main

main()
