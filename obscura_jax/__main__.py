"""`python -m obscura_jax` is the command `obscura`."""

from obscura_jax.cli.__main__ import main

main()
