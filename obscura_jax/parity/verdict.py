"""What the lab says: a section for each kind of tensors, tokens, and one verdict over all."""

from dataclasses import dataclass, field

from obscura_jax.config import GPTConfig
from obscura_jax.parity.compare import Finding

FORWARD = "forward pass"


@dataclass(frozen=True)
class Section:
    """The findings on one kind of tensors, worst prompt each; `first` differs, `cause` is why."""

    title: str
    findings: list[Finding]
    cause: str | None = None
    note: str = ""

    @property
    def first(self) -> Finding | None:
        """The first tensor, in the order of the forward pass, that is not equal."""
        return next((row for row in self.findings if not row.equal), None)


@dataclass(frozen=True)
class Tokens:
    """Greedy tokens of one prompt: how many agree, and the margin where they part.

    Attributes:
        prompt: its name.
        count: tokens made.
        differs_at: the first that differs, or None.
        ours: the token of ours there.
        theirs: theirs.
        margin: by how much the two tokens' logits differ there, in float64.
        rounding: how far their float32 logits lie from their float64 ones there.
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
        """Whether rounding alone can have turned the choice."""
        return self.differs_at is not None and self.margin <= 4 * self.rounding

    @property
    def equal(self) -> bool:
        """The same tokens, or a near-tie."""
        return self.differs_at is None or self.near_tie


@dataclass(frozen=True)
class Report:
    """All that the lab found. `equal` is the verdict."""

    source: str
    against: str
    cfg: GPTConfig
    sections: list[Section]
    tokens: list[Tokens]
    notes: list[str] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """Equal up to rounding, in everything that was compared."""
        return all(section.first is None for section in self.sections) and all(
            row.equal for row in self.tokens
        )

    @property
    def first(self) -> tuple[Section, Finding] | None:
        """The first tensor of all that differs, and where it stands."""
        found = ((s, s.first) for s in self.sections)
        return next(((s, row) for s, row in found if row is not None), None)
