"""`obscura_jax.parity.torch_reference` under the name it had before it came with the package."""

from obscura_jax.parity.torch_reference import *  # noqa: F403
