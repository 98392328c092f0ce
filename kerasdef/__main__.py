"""`python -m kerasdef` is the command `kerasdef`."""

from kerasdef.cli import main

main()
