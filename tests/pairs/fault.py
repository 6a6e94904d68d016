"""A planted fault: one changed line of a JAX program."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """A change of one line of `PAIR_jax.py`, and what a comparison should report.

    `old` occurs once in that file. `torch_line` occurs once in `PAIR_torch.py`, on the line of the
    counterpart; two texts if two lines are equally right. If `loading`, it is the name of the
    first parameter that is converted wrongly. `mend` is the kind of the small change of the JAX
    program that repairs it, or None if there is none.
    """

    pair: str
    name: str
    old: str
    new: str
    torch_line: str | tuple[str, str]
    mend: str | None
    loading: bool = False
