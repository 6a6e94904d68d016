"""A from-scratch GPT, ported from PyTorch to pure functions in JAX and Flax.

The public names stand in `__init__.pyi`, one by one. Each is imported when it is first used, so
that `obscura_jax.text` needs no jax and the command line starts at once.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
