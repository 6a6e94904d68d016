"""An alias of `obscura_jax.parity.torch_reference`, which used to be this file."""

from obscura_jax.parity.torch_reference import *  # noqa: F403
