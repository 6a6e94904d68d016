"""`obscura`, except that a process reports the death of another one after 0.1 s instead of 4 s."""

from obscura_jax.__main__ import run
from obscura_jax.scale import rendezvous

if __name__ == "__main__":
    rendezvous.EXIT_GRACE_S = 0.1
    run()
