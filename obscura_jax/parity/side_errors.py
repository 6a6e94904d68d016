"""Note on an exception of a user's program which side of the comparison raised it."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def running(side: str, how: str = "") -> Iterator[None]:
    """Context manager: add a note to an exception, such as "the PyTorch side fails in float64".

    The exception itself passes through unchanged. `failure_of` reads the note.

    Args:
        side: "PyTorch" or "JAX", whose program the block calls.
        how: a circumstance that the user's own runs lack, such as "in float64".
    """
    try:
        yield
    except BaseException as error:
        if failure_of(error) is None:  # blocks may be nested
            error.add_note(_Failure(f"the {side} side fails {how}".rstrip()))
        raise


def failure_of(error: BaseException) -> str | None:
    """Return the note that `running` added to an exception, or None if it did not."""
    notes = getattr(error, "__notes__", ())
    return next((str(note) for note in notes if isinstance(note, _Failure)), None)


class _Failure(str):
    """A note of `running`, which no user's note can be mistaken for."""

    __slots__ = ()
