"""Faults of gradients: changes of a pair that leave the forward pass equal."""

from dataclasses import dataclass

_CUSTOM = """
@jax.custom_vjp
def silu(x):
    return x * jax.nn.sigmoid(x)


def silu_forward(x):
    return silu(x), x


def silu_backward(x, g):
    s = jax.nn.sigmoid(x)
    slope = s * (1 + x * (1 - s))
    return (0.9 * g * slope,)


silu.defvjp(silu_forward, silu_backward)


class MLP(nnx.Module):
"""

_FUNCTION = """
class Opened(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, g):
        s = torch.sigmoid(ctx.saved_tensors[0])
        slope = s * (1 + ctx.saved_tensors[0] * (1 - s))
        return 0.9 * g * slope


class Expert(nn.Module):
"""


@dataclass(frozen=True)
class GradientFault:
    """Changes of `PAIR_torch.py` or `PAIR_jax.py`, and the lines that a comparison should name.

    Each change is a text that occurs once in the file, and its replacement. The lines are texts
    after the changes; any of them is right.
    """

    pair: str
    name: str
    torch: tuple[tuple[str, str], ...]
    jax: tuple[tuple[str, str], ...]
    torch_lines: tuple[str, ...]
    jax_lines: tuple[str, ...]
    words: str = ""


FAULTS = (
    GradientFault(
        "rotary",
        "stop_gradient of the queries",
        (),
        (("query = rotate(query,", "query = jax.lax.stop_gradient(query); query = rotate(query,"),),
        ("first, second = x.chunk(", "return x * cos"),
        ("stop_gradient(query)",),
        "JAX stops the gradient: stop_gradient",
    ),
    GradientFault(
        "rotary",
        "stop_gradient of a residual branch",
        (),
        (("return x + self.mlp(normed)", "return x + jax.lax.stop_gradient(self.mlp(normed))"),),
        ("return x + self.mlp(normed)",),
        ("stop_gradient(self.mlp(normed))",),
        "JAX stops the gradient: stop_gradient",
    ),
    GradientFault(
        "rotary",
        "a weight of norms that is not trained",
        (),
        (
            (
                "normalized * self.weight[...]",
                "normalized * jax.lax.stop_gradient(self.weight[...])",
            ),
        ),
        ("return normalized * self.weight",),
        ("stop_gradient(self.weight[...])",),
        "JAX stops the gradient: stop_gradient",
    ),
    GradientFault(
        "rotary",
        "a tied head that is not trained",
        (("F.linear(x, self.embed.weight)", "F.linear(x, self.embed.weight.detach())"),),
        (),
        ("self.embed.weight.detach()",),
        ("self.embed.attend(x)",),
        "PyTorch stops the gradient: detach",
    ),
    GradientFault(
        "rotary",
        "a factor in a custom_vjp",
        (),
        (("\nclass MLP(nnx.Module):\n", _CUSTOM), ("jax.nn.silu(gate) * up", "silu(gate) * up")),
        ("opened = F.silu(gate)",),
        ("return (0.9 * g * slope,)",),
        "times 0.9",
    ),
    GradientFault(
        "rotary",
        "a straight-through estimate",
        (("gate = self.gate(x)", "gate = torch.round(8 * self.gate(x)) / 8"),),
        (
            (
                "up = self.up(x)\n",
                "up = self.up(x)\n        gate = gate + jax.lax.stop_gradient("
                "jnp.round(8 * gate) / 8 - gate)\n",
            ),
        ),
        ("torch.round(8 * self.gate(x))",),
        ("jax.lax.stop_gradient(jnp.round(",),
        "PyTorch has no gradient here",
    ),
    GradientFault(
        "experts",
        "attention weights that are detached",
        (("scores.softmax(dim=-1)", "scores.softmax(dim=-1).detach()"),),
        (),
        (".softmax(dim=-1).detach()",),
        ("weights = jax.nn.softmax(scores", "mixed = jnp.einsum("),
        "PyTorch stops the gradient: detach",
    ),
    GradientFault(
        "experts",
        "stop_gradient of one of two uses",
        (),
        (
            (
                'sigmoid(x @ p["shared_gate"])',
                'sigmoid(jax.lax.stop_gradient(x) @ p["shared_gate"])',
            ),
        ),
        ("openness = torch.sigmoid(self.shared_gate(x))",),
        ("openness = jax.nn.sigmoid(",),
        "JAX stops the gradient: stop_gradient",
    ),
    GradientFault(
        "experts",
        "a factor in a torch.autograd.Function",
        (
            ("\nclass Expert(nn.Module):\n", _FUNCTION),
            ("opened = F.silu(", "opened = Opened.apply("),
        ),
        (),
        ("return 0.9 * g * slope",),
        ("opened = jax.nn.silu(gate)",),
        "",
    ),
    GradientFault(
        "statespace",
        "a hidden state without gradient in a scan",
        (),
        (("decay * hidden + drive", "decay * jax.lax.stop_gradient(hidden) + drive"),),
        ("hidden = decay * hidden + drive",),
        ("stop_gradient(hidden)",),
        "JAX stops the gradient: stop_gradient",
    ),
    GradientFault(
        "statespace",
        "a block under no_grad",
        (
            (
                "        delta = F.softplus(steps)\n",
                "        with torch.no_grad():\n            delta = F.softplus(steps)\n",
            ),
        ),
        (),
        ("delta = F.softplus(steps)",),
        ("delta = nn.softplus(steps)", "steps = nn.Dense("),
        "PyTorch stops the gradient: no_grad",
    ),
    GradientFault(
        "vision",
        "a branch that is detached",
        (("h = h * self.scale1", "h = (h * self.scale1).detach()"),),
        (),
        (".detach()",),
        ("x = x + h * self.scale1",),
        "PyTorch stops the gradient: detach",
    ),
    GradientFault(
        "vision",
        "stop_gradient of a variance",
        (),
        (("rsqrt(variance + 1e-6)", "rsqrt(jax.lax.stop_gradient(variance) + 1e-6)"),),
        ("h = self.norm1(x)", "h = self.norm2(x)"),
        ("stop_gradient(variance)",),
        "JAX stops the gradient: stop_gradient",
    ),
)
