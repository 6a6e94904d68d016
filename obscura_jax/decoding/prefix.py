"""The start that several prompts share, read once."""

from dataclasses import dataclass

from obscura_jax.decoding.cache import KVCache


@dataclass(frozen=True)
class Prefix:
    """The keys and values of a start of prompts; made by `Generator.prefix`.

    Attributes:
        ids: its token ids.
        cache: one row of keys and values, with at least as many slots as there are ids.
        engine: the `Generator` that made it: no other one has the same weights.
    """

    ids: tuple[int, ...]
    cache: KVCache
    engine: object
