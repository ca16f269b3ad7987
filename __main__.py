"""`python -m ser` is the command `ser`."""

import sys

# `python -m` puts the working folder first, where a downloaded corpus may hold a json.py.
if not sys.flags.safe_path:
    del sys.path[0]

from ser.cli import main

main(prog_name="ser")
