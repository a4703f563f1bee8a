"""`python -m userec`: the same as the command `userec`."""

from userec.cli.main import main

main()
