"""Trace a PyTorch program in float64: every elementary operation, with its line and its operands.

A dispatch mode sees each operation below autograd. It replaces float32 and lower types by float64,
splits fused kernels into elementary operations, and follows tensors by identity and version, so
that writes in place are seen.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from numpy.typing import NDArray

from obscura_jax.extras import require
from obscura_jax.parity import torch_kernels
from obscura_jax.parity.fingerprint import fingerprint
from obscura_jax.parity.program import TorchProgram, arrays_in, picked
from obscura_jax.parity.side_errors import running
from obscura_jax.parity.sources import current_source
from obscura_jax.parity.torch_digits import OwnDigits, tensors_of
from obscura_jax.parity.torch_lift import in_float64, is_low, lifted, modules_of, tensor_names
from obscura_jax.parity.torch_native import is_tensor, native_outputs, numpy_of
from obscura_jax.parity.trace import KEPT_BYTES, Node, Source, Trace


def trace_torch(program: TorchProgram) -> Trace:
    """Run a PyTorch program in its own precision and in float64, and return its trace.

    Raises:
        NotComparableError: if it returns no tensors, or different ones in two runs.
    """
    require("torch", "parity", "a comparison with a PyTorch program")
    native = native_outputs(program)
    run = Run(program)
    run()
    return Trace(
        "PyTorch",
        run.nodes,
        run.outputs,
        list(native),
        run.inputs,
        run.parameters,
        functools.partial(_fetch, program),
        run.kept,
        list(native.values()),
        run.random,
    )


def _fetch(program: TorchProgram, wanted: Iterable[int]) -> dict[int, NDArray[Any]]:
    run = Run(program, frozenset(wanted))
    run()
    return run.kept


class Run:
    """One run of a program in float64.

    Attributes:
        nodes: all values so far.
        outputs: indices of the results.
        inputs: indices of the inputs.
        parameters: indices of the parameters.
        kept: values; with `wanted`, those of the nodes that it names.
        random: operations that draw random numbers.
        tensors: the tensors of the inputs and parameters, by node.
    """

    def __init__(self, program: TorchProgram, wanted: frozenset[int] | None = None) -> None:
        from torch.utils.weak import WeakTensorKeyDictionary

        self.program, self.wanted = program, wanted
        self.nodes: list[Node] = []
        self.outputs: list[int] = []
        self.inputs: list[int] = []
        self.parameters: list[int] = []
        self.kept: dict[int, NDArray[Any]] = {}
        self.random: list[int] = []
        self.tensors: dict[int, Any] = {}
        self._room = KEPT_BYTES
        self._digits = OwnDigits()
        self._place: Any = WeakTensorKeyDictionary()  # tensor -> (node, version)
        self._twins: Any = WeakTensorKeyDictionary()  # tensor of low precision -> float64
        self._written: dict[int, int] = {}  # address of a storage -> the last write in place
        self._names: dict[int, str] = {}
        self._parameter_ids: set[int] = set()
        self._input_ids: set[int] = set()
        self._stack: list[str] = []
        self._fused = ""
        self._creating: Source | None = None

    def __call__(self) -> None:
        """Run the program."""
        import torch
        from torch.utils._pytree import tree_map

        program = self.program
        modules = modules_of(program.call)
        types = [tensor.dtype for tensor in tensors_of(modules)]
        with ExitStack() as stack:
            stack.enter_context(in_float64(modules))
            for tensor, dtype in zip(tensors_of(modules), types, strict=True):
                self._digits.given(tensor, dtype)
            self._names, self._parameter_ids = tensor_names(modules)
            args, kwargs = tree_map(
                lambda x: self._noted(x) if isinstance(x, torch.Tensor) else x,
                (program.args, program.kwargs),
            )
            for name, x in arrays_in((args, kwargs), is_tensor).items():
                self._names.setdefault(id(x), name.replace("[0]", "args", 1).replace("[1].", "", 1))
                self._input_ids.add(id(x))
            for module in modules:
                stack.callback(self._hook(module))
            stack.enter_context(running("PyTorch", "in float64"))
            self.enter(stack, modules)
            with dispatch_mode(self):
                result = picked(program.call(*args, **kwargs), program.out, "PyTorch")
            self.finish(list(arrays_in(result, is_tensor).values()))

    def enter(self, stack: ExitStack, modules: list[Any]) -> None:
        """Prepare for the call of the program."""
        import torch

        stack.enter_context(torch.no_grad())

    def given(self, tensor: Any) -> Any:
        """Return an input of the program in float64."""
        return self.lift(tensor)

    def _noted(self, tensor: Any) -> Any:
        given = self.given(tensor)
        self._digits.given(given, tensor.dtype)
        return given

    def finish(self, results: list[Any]) -> None:
        """Note the outputs after the call of the program."""
        self.outputs = [self.place(self.lift(x), x) for x in results]

    def _hook(self, module: Any) -> Callable[[], None]:
        """Keep the path of the running module at the end of the stack; return how to stop."""
        handles = []
        for name, part in module.named_modules():
            handles.append(
                part.register_forward_pre_hook(lambda m, args, n=name: self._stack.append(n))
            )
            handles.append(
                part.register_forward_hook(
                    lambda m, args, out: (self._stack.pop(), None)[1], always_call=True
                )
            )

        def remove() -> None:
            for handle in handles:
                handle.remove()

        return remove

    def lift(self, tensor: Any) -> Any:
        """Return the float64 twin of a tensor of lower precision, or the tensor itself."""
        if not is_low(tensor.dtype):
            return tensor
        twin = self._twins.get(tensor)
        if twin is None:
            twin = self._twins[tensor] = lifted(tensor.detach())
        return twin

    def place(self, tensor: Any, original: Any) -> int:
        """Return the node of a tensor; one that is not known becomes a leaf."""
        version = _version(tensor)
        known = self._place.get(tensor)
        if known is None:
            name = self._names.get(id(original), "")
            node = self.add("leaf", (), tensor, name=name or "constant")
            self._digits.add_leaf(node, original)
            if id(original) in self._input_ids:
                self.inputs.append(node.index)
                self.tensors[node.index] = original
            if id(original) in self._parameter_ids:
                self.parameters.append(node.index)
                self.tensors[node.index] = original
            return node.index
        index: int = known[0]
        if known[1] != version:  # written in place, perhaps through another view
            write = self._written.get(_address(tensor), index)
            inputs = (index,) if write == index else (index, write)
            node = self.add("written", inputs, tensor, layout=True)
            self._digits.add(node, self.nodes)
            return node.index
        return index

    def add(self, op: str, inputs: tuple[int, ...], tensor: Any, **more: Any) -> Node:
        """Add a node for a tensor."""
        index = len(self.nodes)
        dtype = str(tensor.dtype).removeprefix("torch.")
        node = Node(index, op, inputs, tuple(tensor.shape), dtype, **more)
        self.nodes.append(node)
        self._place[tensor] = (index, _version(tensor))
        if self.wanted is not None:
            if index in self.wanted:
                self.kept[index] = numpy_of(tensor).copy()
            return node
        first = self.nodes[inputs[0]] if inputs else None
        if node.permutes and first is not None and first.size == node.size:
            node.print = first.print
        else:
            node.print = fingerprint(numpy_of(tensor))
        if tensor.numel() * 8 <= self._room:
            self.kept[index] = numpy_of(tensor).copy()
            self._room -= tensor.numel() * 8
        return node

    def dispatch(self, mode: Any, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Execute one operation in float64, and record it."""
        import torch
        from torch.utils._pytree import tree_flatten, tree_map

        name = func.overloadpacket.__name__
        lowered = ""

        def lift(x: Any) -> Any:
            nonlocal lowered
            if isinstance(x, torch.dtype) and is_low(x):
                lowered = str(x).removeprefix("torch.")
                return torch.complex128 if x.is_complex else torch.float64
            return x

        original = tree_flatten((args, kwargs))[0]
        args, kwargs = tree_map(lift, (args, kwargs))
        # The program may be between two operations of a fused kernel: its line is kept.
        outermost = self._creating is None
        if outermost:
            self._creating = self.source()
        try:
            opened = self._opened(mode, func, name, args, kwargs)
            if opened is not None:
                return opened
            tensors = [x for x in original if isinstance(x, torch.Tensor)]
            inputs = tuple(self.place(self.lift(x), x) for x in tensors)
            args, kwargs = tree_map(
                lambda x: self.lift(x) if isinstance(x, torch.Tensor) else x, (args, kwargs)
            )
            out = self.computed(func(*args, **kwargs), lowered)
            self._record(name, inputs, out, original, lowered)
            return out
        finally:
            if outermost:
                self._creating = None

    def computed(self, result: Any, lowered: str) -> Any:
        """Return the result of the operation whose first result is the next node."""
        return result

    @contextmanager
    def inside(self, fused: str, source: Source | None) -> Iterator[None]:
        """Context manager: operations belong to a kernel that a line calls."""
        before = self._creating, self._fused
        self._creating = self._creating or source
        self._fused = self._fused or fused
        try:
            yield
        finally:
            self._creating, self._fused = before

    def source(self) -> Source | None:
        """Return the line of the program that is running now."""
        return current_source()

    def _opened(
        self, mode: Any, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Return the result of a fused operation, computed step by step, or None."""
        table = torch_kernels.decompositions()
        outer, self._fused = self._fused, self._fused or name.removeprefix("_")
        try:
            with mode:
                if func in table:
                    try:
                        return table[func](*args, **kwargs)
                    except NotImplementedError:
                        return None
                return torch_kernels.unfused(name, args, kwargs)
        finally:
            self._fused = outer

    def _record(
        self, name: str, inputs: tuple[int, ...], out: Any, given: list[Any], lowered: str
    ) -> None:
        import torch
        from torch.utils._pytree import tree_flatten

        numbers = tuple(x for x in given if isinstance(x, float))
        asked = next((x for x in given if isinstance(x, torch.dtype)), None)
        in_place = name.endswith("_") and not name.endswith("__")
        plain = name.rstrip("_") if in_place else name
        for x in tree_flatten(out)[0]:
            if not isinstance(x, torch.Tensor):
                continue
            node = self.add(
                "leaf" if plain.startswith(("empty", "new_empty")) else name,
                inputs,
                x,
                source=self._creating,
                path=self._stack[-1] if self._stack else "",
                name="uninitialized" if "empty" in plain else "",
                layout=name in torch_kernels.LAYOUT or plain in torch_kernels.LAYOUT,
                permutes=name in torch_kernels.PERMUTES,
                fused=self._fused,
                numbers=numbers,
            )
            if self._digits.add(node, self.nodes, asked):
                node.lowered = lowered
            if in_place:
                self._place[x] = (node.index, _version(x) + 1)  # it is raised after the operation
                self._written[_address(x)] = node.index
            if name in torch_kernels.RANDOM:
                self.random.append(node.index)


def _version(tensor: Any) -> int:
    try:
        return int(tensor._version)
    except RuntimeError:  # a tensor of inference mode has none
        return 0


def _address(tensor: Any) -> int:
    return int(tensor.untyped_storage().data_ptr())


def dispatch_mode(run: Run) -> Any:
    """Return the mode that gives every operation to a run."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            return run.dispatch(self, func, tuple(args), dict(kwargs or {}))

    return Mode()
