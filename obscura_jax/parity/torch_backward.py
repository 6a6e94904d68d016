"""Trace the backward pass of a PyTorch program in float64, in elementary operations.

Operations of the backward pass have no line of the program. Each belongs to a node of autograd,
whose sequence number leads to the operation of the program that created it.
"""

import functools
import warnings
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

from numpy.typing import NDArray

from obscura_jax.parity.backward import FACTORS, Backward, NoGradientsError
from obscura_jax.parity.program import TorchProgram
from obscura_jax.parity.sources import current_source, library_roots
from obscura_jax.parity.torch_attention import elementary_attention
from obscura_jax.parity.torch_trace import Run, dispatch_mode
from obscura_jax.parity.trace import Source, Trace

_ACCUMULATES = ("add", "add_")


def torch_backward(
    program: TorchProgram,
    forward: Trace,
    leaves: Iterable[int],
    cotangents: Mapping[int, NDArray[Any]],
) -> Backward:
    """Return the backward pass of a program.

    Args:
        program: the program.
        forward: its trace.
        leaves: the nodes of the parameters and inputs whose gradients are wanted.
        cotangents: the factors of each output, by position.

    Raises:
        NoGradientsError: if PyTorch cannot differentiate the program.
    """
    wanted = _numbered(forward, leaves)
    try:
        run = _BackwardRun(program, cotangents, set(wanted))
        run()
    except (RuntimeError, NotImplementedError) as error:
        why = " ".join(str(error).split()).split(". ")[0]
        raise NoGradientsError(f"PyTorch cannot differentiate its side: {why}") from error
    gradients = {wanted[key]: node for key, node in run.gradients.items()}
    trace = Trace(
        "PyTorch",
        run.nodes,
        list(gradients.values()),
        [forward.nodes[i].name for i in gradients],
        run.inputs,
        run.parameters,
        functools.partial(_fetch, program, cotangents, set(wanted)),
        run.kept,
    )
    return Backward(trace, gradients, run.forward, run.stops())


def _fetch(
    program: TorchProgram,
    cotangents: Mapping[int, NDArray[Any]],
    leaves: set[tuple[str, int]],
    wanted: Iterable[int],
) -> dict[int, NDArray[Any]]:
    run = _BackwardRun(program, cotangents, leaves, frozenset(wanted))
    run()
    return run.kept


def _numbered(trace: Any, leaves: Iterable[int]) -> dict[tuple[str, int], int]:
    """Return the leaves by name, and by a number for those of the same name."""
    found: dict[tuple[str, int], int] = {}
    for i in leaves:
        name = trace.nodes[i].name
        found[name, sum(known == name for known, _ in found)] = i
    return found


class _BackwardRun(Run):
    """A run of a program and of its backward pass.

    Attributes:
        gradients: the node of each gradient, by name and number of the leaf.
        forward: see `Backward`.
    """

    def __init__(
        self,
        program: TorchProgram,
        cotangents: Mapping[int, NDArray[Any]],
        leaves: set[tuple[str, int]],
        wanted: frozenset[int] | None = None,
    ) -> None:
        super().__init__(program, wanted)
        self.gradients: dict[tuple[str, int], int] = {}
        self.forward: dict[int, tuple[int, ...]] = {}
        self._cotangents, self._leaves = cotangents, leaves
        self._results: dict[int, tuple[int, ...]] = {}  # by sequence number, as the next two
        self._lines: dict[int, Source | None] = {}
        self._paths: dict[int, str] = {}
        self._last = -1
        self._outside: set[int] = set()  # operations outside of autograd
        self._given: dict[int, Any] = {}  # inputs that require gradients, by id of the user's
        self._busy = False
        self._function = False
        self._ended = False  # whether the program has ended and its backward pass begun

    def enter(self, stack: ExitStack, modules: list[Any]) -> None:
        """Make all floating parameters and inputs require gradients during the run."""
        import torch

        before = []
        for module in modules:
            for parameter in module.parameters():
                if parameter.is_floating_point():
                    before.append((parameter, parameter.requires_grad))
        stack.callback(_restore, before)
        for parameter, _ in before:
            parameter.requires_grad_(True)
        # The program itself may read numbers from tensors, whose gradients only we ask for.
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", message="Converting a tensor with requires_grad=True")
        stack.enter_context(elementary_attention(self))
        stack.enter_context(torch.enable_grad())
        self._last = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]

    def given(self, tensor: Any) -> Any:
        """Return an input that requires gradients, without changing that of the user."""
        if not tensor.is_floating_point():
            return tensor
        known = self._given.get(id(tensor))
        if known is None:
            known = self._given[id(tensor)] = self.lift(tensor).detach().requires_grad_(True)
        return known

    def finish(self, results: list[Any]) -> None:
        """Run the backward pass.

        Raises:
            NoGradientsError: if the program switches gradients off.
        """
        import torch

        for x in results:
            self.place(self.lift(x), x)  # an input that is returned as it is becomes a leaf here
        ends = [
            (results[n], torch.from_numpy(factor))
            for n, factor in self._cotangents.items()
            if results[n].requires_grad
        ]
        if not ends and self._outside.issuperset(n.index for n in self.nodes if not n.leaf):
            raise NoGradientsError(
                "all of the PyTorch side runs under torch.no_grad or torch.inference_mode; leave "
                "that out to compare them"
            )
        for n, (_, factor) in enumerate(ends):
            self._names[id(factor)] = f"{FACTORS} {n + 1}"
        chosen = _numbered(self, self.tensors)
        chosen = {key: i for key, i in chosen.items() if key in self._leaves}
        if not ends or not chosen:
            return
        self._ended = True
        with dispatch_mode(self):
            found = torch.autograd.grad(
                [x for x, _ in ends],
                [self.tensors[i] for i in chosen.values()],
                [factor for _, factor in ends],
                allow_unused=True,
            )
        gradients: list[Any] = list(found)
        for key, gradient in zip(chosen, gradients, strict=True):
            if gradient is not None:
                self.gradients[key] = self.place(self.lift(gradient), gradient)
        self.outputs = list(self.gradients.values())

    def source(self) -> Source | None:
        """Return the line that is running; in the backward pass, that of the program's operation.

        A backward function of the user has lines of its own.
        """
        node = _autograd_node()
        source = current_source()
        if node is None:
            return source
        if source is not None and not source.file.startswith(library_roots()):
            return source
        return self._lines.get(node._sequence_nr())

    def dispatch(self, mode: Any, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Execute one operation, and note to which node of autograd it belongs."""
        import torch

        if self._busy:
            return super().dispatch(mode, func, args, kwargs)
        first, node = len(self.nodes), _autograd_node()
        number = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]
        if node is None and number > self._last and not self._ended:
            self._lines[number - 1] = self._creating or self.source()
            self._paths[number - 1] = self._stack[-1] if self._stack else ""
        self._busy = True
        try:
            out = super().dispatch(mode, func, args, kwargs)
        finally:
            self._busy = False
        added = range(first, len(self.nodes))
        if node is not None:
            self._note(node._sequence_nr(), func.overloadpacket.__name__, added)
        elif self._ended:  # a hook
            self.forward |= dict.fromkeys(added, ())
        else:
            self._note_forward(number, torch.is_grad_enabled(), added)
        self._last = number
        return out

    def _note_forward(self, number: int, enabled: bool, added: range) -> None:
        """Note which node of autograd belongs to new nodes of the program.

        Args:
            number: the next sequence number of autograd.
            enabled: whether PyTorch computes gradients now.
            added: the new nodes.
        """
        created = number > self._last
        if created:
            self._results[number - 1] = tuple(added)
        # A node is created without gradients before the `forward` of an autograd.Function only.
        self._function = not enabled and (created or self._function)
        if self._function and not created:
            self._results[number - 1] = (*self._results[number - 1], *added)
        if not enabled and not self._function:
            self._outside.update(added)

    def _note(self, number: int, name: str, added: range) -> None:
        """Note to which operation of the program new nodes of the backward pass belong."""
        for i in added:
            if not self.nodes[i].leaf:
                sums = name in _ACCUMULATES
                self.forward[i] = () if sums else self._results.get(number, ())
                self.nodes[i].path = self._paths.get(number, "")

    def stops(self) -> frozenset[int]:
        """Return the operations of the program that let no gradient through."""
        used = {i for n in self.nodes if n.index not in self.forward for i in n.inputs}
        detached = {n.index for n in self.nodes if n.op == "detach" and n.index in used}
        return frozenset(detached - self.forward.keys() | self._outside)


def _restore(before: list[tuple[Any, bool]]) -> None:
    for parameter, requires in before:
        parameter.requires_grad_(requires)


def _autograd_node() -> Any:
    """Return the node of autograd whose derivative is computed now, or None."""
    import torch

    return torch._C._current_autograd_node()
