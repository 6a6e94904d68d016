"""The lab's results: one section per kind of tensors, tokens, and a verdict."""

from dataclasses import dataclass, field

from obscura_jax.config import GPTConfig
from obscura_jax.parity.findings import Finding as Place
from obscura_jax.parity.gpt.compare import Finding

FORWARD = "forward pass"


@dataclass(frozen=True)
class Section:
    """The findings on one kind of tensors, each for its worst prompt.

    Attributes:
        title: the kind of tensors, such as "gradients".
        findings: one per tensor, in the order of the computation.
        cause: the reason for the first difference, or None.
        places: the lines at which the programs part, in order, if they were looked for.
    """

    title: str
    findings: list[Finding]
    cause: str | None = None
    places: tuple[Place, ...] = ()

    @property
    def first(self) -> Finding | None:
        """The first finding that is not equal, or None."""
        return next((row for row in self.findings if not row.equal), None)


@dataclass(frozen=True)
class Tokens:
    """The greedy tokens of one prompt, up to the first difference.

    Attributes:
        prompt: name of the prompt.
        count: number of tokens generated.
        differs_at: index of the first token that differs, or None.
        ours: our token at that index.
        theirs: their token at that index.
        margin: difference of the two tokens' float64 logits at that index.
        rounding: largest difference between their float32 and float64 logits at that index.
    """

    prompt: str
    count: int
    differs_at: int | None = None
    ours: int | None = None
    theirs: int | None = None
    margin: float = 0.0
    rounding: float = 0.0

    @property
    def near_tie(self) -> bool:
        """True if rounding alone may have changed the choice."""
        return self.differs_at is not None and self.margin <= 4 * self.rounding

    @property
    def equal(self) -> bool:
        """True if all tokens are the same, or the first different one is a near-tie."""
        return self.differs_at is None or self.near_tie


@dataclass(frozen=True)
class Report:
    """Everything that the lab found; `equal` is the verdict.

    Attributes:
        source: name of the weights.
        against: name of the PyTorch side.
        cfg: the model.
        sections: forward pass, gradients, and optimizer state if it was compared.
        tokens: one entry per prompt.
        notes: remarks, one sentence each.
    """

    source: str
    against: str
    cfg: GPTConfig
    sections: list[Section]
    tokens: list[Tokens]
    notes: list[str] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """True if everything that was compared is equal up to rounding."""
        return all(section.first is None for section in self.sections) and all(
            row.equal for row in self.tokens
        )

    @property
    def first(self) -> tuple[Section, Finding] | None:
        """The first finding that is not equal, with its section, or None."""
        found = ((s, s.first) for s in self.sections)
        return next(((s, row) for s, row in found if row is not None), None)
