"""Reports of comparisons of two programs, composed by hand, for tests of how they are shown."""

from dataclasses import replace
from pathlib import Path

from obscura_jax.parity.findings import (
    Finding,
    Gradient,
    Mend,
    Operation,
    Output,
    Place,
    Report,
    Side,
    Verdict,
)
from obscura_jax.parity.trace import Source

PAIRS = Path(__file__).parents[1] / "pairs"
NAN = float("nan")


def place_of(file, text, op, *, path="", shape=(3, 37, 24), fused=""):
    """Return a place at the only line of a file that contains `text`."""
    lines = (PAIRS / file).read_text("utf-8").splitlines()
    (line,) = (n for n, code in enumerate(lines, 1) if text in code)
    source = Source(str(PAIRS / file), line, "forward")
    return Place(op, fused, source, lines[line - 1].strip(), path, shape)


EPSILON = Finding(
    "operation",
    place_of("audio_torch.py", "self.norm(x)", "native_group_norm", path="layers.0.norm"),
    place_of("audio_jax.py", "jnp.sqrt(var + self.eps)", "add", path="vmap", fused="norm"),
    shared=("var at audio_jax.py:48",),
    torch_only=("the literal 1e-05",),
    jax_only=("the literal 1e-06",),
    relation="results: close: at most 1.2e-05 of their size apart",
    effect=3.4e-6,
    occurrences=3,
    mend=Mend("literal", Source(str(PAIRS / "audio_jax.py"), 40), "eps: 1e-06 -> 1e-05"),
)
GATE = Finding(
    "operation",
    place_of("audio_torch.py", "gated = value * gate", "mul", path="layers.1"),
    place_of("audio_jax.py", "gated = value * gate", "mul"),
    shared=("tanh at audio_torch.py:33",),
    relation="results: JAX's is PyTorch's times 0.5 (1/2)",
    effect=1.7e-1,
)
LAYOUT = Finding(
    "arrangement",
    place_of("audio_torch.py", "value, gate = y.chunk(2, dim=1)", "split", path="layers.2"),
    place_of("audio_jax.py", "jnp.split(y, 2, axis=0)", "slice"),
    shared=("y",),
)
CONSTANT = Finding(
    "constant",
    place_of("audio_torch.py", "total * math.sqrt(0.5)", "mul"),
    place_of("audio_jax.py", "total * HALF_POWER", "mul"),
    effect=4e-8,
    occurrences=3,
)
SIDES = (
    Side("PyTorch", "WaveNet", 212, 190, ("mix.bias",), ("layers.2.residual.bias",)),
    Side("JAX", "vmap(WaveNet)", 260, 231, (), (), ("audio_jax.py:48 (bfloat16)",)),
)
EQUAL = Report(
    Verdict.EQUAL,
    outputs=(Output("logits", (3, 11, 37), 2.2e-16, 4.1e-7, True),),
    gradients=(Gradient("mix.bias", "mix.bias", 1e-15, True),),
    sides=SIDES[:1],
)
CONSTANTS = replace(EQUAL, verdict=Verdict.EQUAL_WITH_CONSTANTS, findings=(CONSTANT,))
OPERATIONS = tuple(
    Operation(side, index, place, match)
    for side, index, place, match in [
        ("PyTorch", 0, EPSILON.torch, 1),
        ("PyTorch", 1, LAYOUT.torch, None),
        ("PyTorch", 2, GATE.torch, 3),
        ("PyTorch", 4, GATE.torch, 3),
        ("PyTorch", 5, GATE.torch, 99),  # a value that the list does not contain
        ("JAX", 0, EPSILON.jax, None),
        ("JAX", 1, EPSILON.jax, 0),
        ("JAX", 2, LAYOUT.jax, 0),
        ("JAX", 3, GATE.jax, 2),
        ("JAX", 4, GATE.jax, None),
    ]
)
DIFFERENT = Report(
    Verdict.DIFFERS,
    outputs=(
        Output("logits", (3, 11, 37), 1.7e-1, 1.7e-1, False),
        Output("state", (3, 24), 2.2e-16, NAN, True),
    ),
    findings=(CONSTANT, EPSILON, GATE, LAYOUT),
    gradients=tuple(
        Gradient(f"layers.{i}.norm.weight", f"layers[{i}].norm.weight", 2e-3 * i, i == 0)
        for i in range(9)
    ),
    gradient_findings=(GATE,),
    sides=SIDES,
    complete=False,
    notes=("JAX's program ran once for each of 3 sequences",),
    operations=OPERATIONS,
)
REFUSED = Report(Verdict.NOT_COMPARABLE, "PyTorch returns 1 array\nand JAX 2")


def moved(finding, line):
    """Return the finding at another line of the JAX program."""
    return replace(finding, jax=replace(finding.jax, source=Source("port.py", line, "f")))
