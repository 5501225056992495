"""`python -m steadyflow` is the command line."""

from .cli import main

main()
