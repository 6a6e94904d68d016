"""Inspection of traced programs."""

from typing import Any


def primitives(jaxpr: Any, into_branches: bool) -> set[str]:
    """Return the names of the operations of a jaxpr and of those inside it.

    Unless `into_branches`, the branches of `cond` are left out.
    """
    names = set()
    for equation in jaxpr.eqns:
        names.add(equation.primitive.name)
        if equation.primitive.name == "cond" and not into_branches:
            continue
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple) else (value,):
                if hasattr(inner, "jaxpr"):
                    names |= primitives(inner.jaxpr, into_branches)
    return names
