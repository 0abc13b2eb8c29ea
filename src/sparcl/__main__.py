"""`python -m sparcl` is the `sparcl` command."""

from sparcl.cli import main

main()
