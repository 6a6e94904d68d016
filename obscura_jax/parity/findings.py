"""The results of a comparison of two programs: places, findings, notes and the verdict."""

from dataclasses import dataclass, field
from enum import StrEnum

from obscura_jax.parity.trace import Source


class Verdict(StrEnum):
    """The result of a comparison."""

    EQUAL = "equal"
    EQUAL_WITH_CONSTANTS = "equal, with float32 constants"
    DIFFERS = "differs"
    NOT_COMPARABLE = "not comparable"


@dataclass(frozen=True)
class Place:
    """An operation in one of the programs.

    Attributes:
        op: name of the operation, such as "dot_general".
        fused: the fused kernel that it is a part of, such as "gelu", or "".
        source: the line of the program, or None if it is not known.
        code: the text of that line.
        path: module path or name stack.
        shape: shape of the result.
    """

    op: str
    fused: str
    source: Source | None
    code: str
    path: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Mend:
    """A change of the JAX program that makes both sides equal.

    Attributes:
        kind: the kind of change, such as "literal".
        source: the line to change, or None if it is not known.
        words: the change, such as "gelu(approximate=True) -> False".
    """

    kind: str
    source: Source | None
    words: str

    def __str__(self) -> str:
        where = f"{self.source}: " if self.source else ""
        return f"{where}{self.words} makes both equal here"


@dataclass(frozen=True)
class Finding:
    """A place at which the programs part.

    Attributes:
        kind: "operation", "constant" (a constant rounded to float32), or "arrangement".
        torch: the operation in PyTorch, or None.
        jax: the operation in JAX, or None.
        shared: operands that both use.
        torch_only: operands that only PyTorch uses there.
        jax_only: operands that only JAX uses there.
        relation: how the two results relate, or "".
        effect: by how much it changes the output, relative to the output's rms.
        occurrences: in how many places the same lines part.
        mend: a change that makes both sides equal there, or None.
    """

    kind: str
    torch: Place | None
    jax: Place | None
    shared: tuple[str, ...] = ()
    torch_only: tuple[str, ...] = ()
    jax_only: tuple[str, ...] = ()
    relation: str = ""
    effect: float = 0.0
    occurrences: int = 1
    mend: Mend | None = None


@dataclass(frozen=True)
class Output:
    """The comparison of one output.

    Attributes:
        name: its name on the PyTorch side.
        shape: its shape.
        float64: largest difference in float64, relative to the output's rms.
        native: the same in the programs' own precision.
        equal: whether it is equal in float64.
    """

    name: str
    shape: tuple[int, ...]
    float64: float
    native: float
    equal: bool


@dataclass(frozen=True)
class Gradient:
    """The gradient of one parameter.

    Attributes:
        name: the parameter in PyTorch.
        jax_name: the same parameter in JAX.
        apart: largest difference, relative to the gradient's rms.
        equal: whether it is equal in float64.
    """

    name: str
    jax_name: str
    apart: float
    equal: bool


@dataclass(frozen=True)
class Side:
    """A summary of one program.

    Attributes:
        name: "PyTorch" or "JAX".
        program: name of the callable.
        operations: number of operations that the outputs depend on.
        matched: how many of them the other side has too.
        unmatched_parameters: parameters whose values are nowhere on the other side.
        unread_parameters: parameters that the outputs do not depend on.
        lowered: lines that round to lower precision, with their effect on the outputs.
    """

    name: str
    program: str
    operations: int
    matched: int
    unmatched_parameters: tuple[str, ...] = ()
    unread_parameters: tuple[str, ...] = ()
    lowered: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """The result of comparing two programs.

    Attributes:
        verdict: the result.
        reason: why the programs are not comparable, or "".
        outputs: one entry for each output.
        findings: places at which they part, in order.
        gradients: one entry for each parameter that both have, if gradients were compared.
        gradient_findings: places at which the backward passes part.
        sides: a summary of each program.
        tolerance: relative tolerance at which values count as equal.
        complete: False if more differences may follow the last finding.
        notes: remarks, one sentence each.
        operations: with `operations=True`, every operation of both sides.
    """

    verdict: Verdict
    reason: str = ""
    outputs: tuple[Output, ...] = ()
    findings: tuple[Finding, ...] = ()
    gradients: tuple[Gradient, ...] = ()
    gradient_findings: tuple[Finding, ...] = ()
    sides: tuple[Side, ...] = ()
    tolerance: float = 1e-9
    complete: bool = True
    notes: tuple[str, ...] = ()
    operations: tuple["Operation", ...] = field(default=(), repr=False)

    @property
    def equal(self) -> bool:
        """True if the programs are equal, perhaps with float32 constants."""
        return self.verdict in (Verdict.EQUAL, Verdict.EQUAL_WITH_CONSTANTS)

    @property
    def exit_code(self) -> int:
        """0 if equal, 1 if different, 2 if not comparable."""
        return 0 if self.equal else 1 if self.verdict is Verdict.DIFFERS else 2

    def __str__(self) -> str:
        from obscura_jax.parity.report import as_text

        return as_text(self)


@dataclass(frozen=True)
class Operation:
    """A line of the list of all operations.

    Attributes:
        side: "PyTorch" or "JAX".
        index: position in the trace.
        place: the operation.
        match: position of an equal value on the other side, or None.
    """

    side: str
    index: int
    place: Place
    match: int | None
