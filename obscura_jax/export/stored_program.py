"""A program of an exported model, which runs as an executable if there is one of its sizes."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Any

from obscura_jax.export.file_format import Sizes


class StoredProgram:
    """An exported program, and executables of it, which are loaded when they are first needed."""

    def __init__(
        self, exported: Callable[[], Any], executables: Mapping[Sizes, Callable[[], Any]]
    ) -> None:
        """Run `exported()`, a jitted function, for sizes that `executables` lacks.

        If there are no executables, load the exported program now.
        """
        self._load_exported, self._executables = exported, executables
        self._loading: dict[Sizes, Future[Any]] = {}
        self._pool = ThreadPoolExecutor(max_workers=1)
        if not executables:
            _ = self._exported

    @cached_property
    def _exported(self) -> Any:
        return self._load_exported()

    def roomy(self, wanted: Sizes) -> Sizes:
        """Return sizes of an executable for `wanted` with the fewest slots; `wanted` if none fits.

        Only the slots and the capacity may be larger than wanted.
        """
        fitting = [
            sizes
            for sizes in self._executables
            if sizes.slots >= wanted.slots
            and sizes.capacity >= wanted.capacity
            and sizes == wanted._replace(slots=sizes.slots, capacity=sizes.capacity)
        ]
        return min(fitting, key=lambda sizes: sizes.slots, default=wanted)

    def start_loading_smallest(self) -> None:
        """Load the executable of the smallest sizes, if there is one, in a thread."""
        if self._executables:
            self.start_loading(min(self._executables))

    def start_loading(self, sizes: Sizes) -> None:
        """Load the executable of these sizes, if there is one, in a thread."""
        if sizes in self._executables and sizes not in self._loading:
            self._loading[sizes] = self._pool.submit(self._executables[sizes])

    def __call__(self, sizes: Sizes, *arguments: Any) -> Any:
        """Run the program on arguments of these sizes."""
        self.start_loading(sizes)
        run = self._loading[sizes].result() if sizes in self._loading else self._exported
        return run(*arguments)

    def _cache_size(self) -> int:
        """Return how many times the exported program was compiled, as `jax.jit` functions do."""
        return self._exported._cache_size() if "_exported" in vars(self) else 0
