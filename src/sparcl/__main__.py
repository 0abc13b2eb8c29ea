"""`python -m sparcl` is the `sparcl` command."""

from sparcl.main import main

main()
