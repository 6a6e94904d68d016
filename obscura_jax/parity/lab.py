"""The verdict on two implementations: forward pass, gradients, optimizer slots, tokens.

PyTorch runs on the CPU, whatever JAX runs on, so the two never share an accelerator; and no process
is forked. Of prompts longer than 128 positions 128 are compared, spread evenly, the first and last
among them: so the 124M model in float64 stays under 8 GiB.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import unflatten_dict
from numpy.typing import NDArray

from obscura_jax.config import GPTConfig
from obscura_jax.decoding.generate import generate
from obscura_jax.interop.dialects import named_tensors
from obscura_jax.nn.intermediates import names
from obscura_jax.nn.model import GPTModel
from obscura_jax.parity.capture import capture, capture_torch
from obscura_jax.parity.causes import cause
from obscura_jax.parity.compare import RATIO, Arrays, Finding, FourRuns, findings, worst
from obscura_jax.parity.prompts import hard_prompts
from obscura_jax.parity.references import Reference, logits_of
from obscura_jax.parity.verdict import FORWARD, Report, Section, Tokens
from obscura_jax.training.loss import next_token_loss
from obscura_jax.training.optimizer import OptimizerConfig
from obscura_jax.training.step import first_state, train_step

Prompts = Mapping[str, NDArray[np.int32]]
_POSITIONS = 128
_DTYPES = ("float64", "float32")
_LARGE = 40_000_000  # parameters; optimizer slots of more are compared on demand only


def examine(
    source: str,
    cfg: GPTConfig,
    params: Any,
    reference: Reference,
    *,
    seed: int = 0,
    steps: int | None = None,
    new_tokens: int = 16,
    default_precision_too: bool | None = None,
) -> Report:
    """Run both frameworks on the same weights in both precisions, and compare all there is.

    Args:
        source: what to call the weights.
        cfg: the model.
        params: its parameter tree, float32.
        reference: the PyTorch side.
        seed: of the prompts.
        steps: optimizer steps after which its slots are compared; by default 3, and none for
            models of more than 40M parameters, whose slots in float64 take gigabytes.
        new_tokens: greedy tokens to compare; 0 compares none.
        default_precision_too: also run with the accelerator's default matrix products, which are
            not float32's; by default where there is one.

    Raises:
        ValueError: when the reference's module fails on a prompt.
    """
    flat = named_tensors(cfg, params)
    if steps is None:
        steps = 3 if sum(x.size for x in flat.values()) <= _LARGE else 0
    lab = _Lab(cfg, flat, reference)
    prompts = hard_prompts(cfg, seed)
    notes = [f"the module has no place for {name}" for name in reference.absent]
    with jax.default_matmul_precision("highest"):
        sections = [lab.forward(prompts), lab.gradients(prompts["batch of 3"])]
        if steps:
            sections.append(lab.optimizer(prompts["batch of 3"], steps))
        else:
            notes.append("optimizer slots: not compared for a model of this size (--steps 3 does)")
        tokens = lab.tokens(prompts, new_tokens)
    if unseen := sections[0].note:
        notes.append(unseen)
    if default_precision_too or (default_precision_too is None and jax.default_backend() != "cpu"):
        notes.append(lab.default_precision(prompts["batch of 3"]))
    return Report(source, reference.label, cfg, sections, tokens, notes)


class _Lab:
    """Both sides of one model. A precision's modules and parameters live only while it runs."""

    def __init__(self, cfg: GPTConfig, flat: Arrays, reference: Reference) -> None:
        self.cfg, self.flat, self.reference = cfg, flat, reference
        self.model = GPTModel(cfg)

    def _params(self, dtype: str) -> Any:
        leaves = {tuple(k.split(".")): jnp.asarray(v, dtype) for k, v in self.flat.items()}
        return unflatten_dict(leaves)

    def _theirs(self, module: Any, ids: NDArray[Any], keep: Any = None) -> Arrays:
        with self._users_code():
            return capture_torch(module, ids, self.reference.taps, keep)

    def _their_logits(self, module: Any, ids: NDArray[Any]) -> NDArray[Any]:
        """Those of the last position, (V,)."""
        taps = [tap for tap in self.reference.taps if tap.name == "logits"]
        with self._users_code():
            return capture_torch(module, ids, taps)["logits"][0, -1]

    def _backpropagate(self, module: Any, ids: NDArray[Any]) -> None:
        import torch

        rows = torch.from_numpy(ids.astype(np.int64))
        with self._users_code():
            logits = logits_of(module, rows[:, :-1])
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
            loss.backward()

    @contextmanager
    def _users_code(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of any type
            raise ValueError(
                f"{self.reference.label} fails on a prompt: {type(error).__name__}: {error}"
            ) from error

    def _both(self, ids: Prompts, keep: Any) -> dict[str, dict[str, Arrays]]:
        """For each run of `FourRuns`, by its name, and each prompt: the intermediates."""
        runs: dict[str, dict[str, Arrays]] = {}
        for dtype in _DTYPES:
            bits = dtype.removeprefix("float")
            with jax.enable_x64(dtype == "float64"):
                params = self._params(dtype)
                runs[f"ours{bits}"] = {
                    name: _on_host(_capture(self.model, params, x, keep), self.cfg)
                    for name, x in ids.items()
                }
                del params
            module = self.reference.build(dtype)
            runs[f"theirs{bits}"] = {name: self._theirs(module, x, keep) for name, x in ids.items()}
        return runs

    def forward(self, prompts: Prompts) -> Section:
        """Every intermediate on every prompt; and the cause, where one differs."""
        runs = self._both(prompts, _some_positions)
        rows = [
            row
            for name in prompts
            for row in findings(FourRuns(**{run: of[name] for run, of in runs.items()}), name)
        ]
        first_prompt = next(iter(prompts))
        seen = runs["theirs64"][first_prompt].keys()
        unseen = [name for name in runs["ours64"][first_prompt] if name not in seen]
        del runs
        section = Section(FORWARD, worst(rows), note=_unseen(unseen))
        if section.first is None:
            return section
        row = next(row for row in rows if row.name == section.first.name and not row.equal)
        return replace(section, cause=self._why(row, prompts[row.prompt]))

    def _why(self, row: Finding, ids: NDArray[Any]) -> str | None:
        with jax.enable_x64(True):
            ours = _on_host(_capture(self.model, self._params("float64"), ids, None), self.cfg)
        theirs = self._theirs(self.reference.build("float64"), ids)
        params = {k: np.asarray(v, np.float64) for k, v in self.flat.items()}
        found = cause(row.name, ours, theirs, self.cfg, params)
        if found is None and row.float64 <= 4 * row.expected64 * RATIO:
            return "as if computed in float32 there, whatever the type of the input"
        return found

    def gradients(self, ids: NDArray[Any]) -> Section:
        """Those of the mean next-token loss, for every parameter."""
        runs: dict[str, Arrays] = {}
        for dtype in _DTYPES:
            bits = dtype.removeprefix("float")
            with jax.enable_x64(dtype == "float64"):
                found = _gradient(self.model, self._params(dtype), ids[:, :-1], ids[:, 1:])
                mine = named_tensors(self.cfg, found)
                runs[f"ours{bits}"] = {name: mine[name] for name in self._backward()}
                del found, mine
            module = self.reference.build(dtype)
            self._backpropagate(module, ids)
            runs[f"theirs{bits}"] = self._named(module, lambda p: p.grad)
            del module
        return Section("gradients", findings(FourRuns(**runs), "batch of 3"))

    def _backward(self) -> list[str]:
        """The parameters in the order in which the gradient reaches them, the head's first."""
        place = {name: n for n, name in enumerate(names(self.cfg))}
        last = len(place)
        return sorted(self.flat, key=lambda x: -place.get(x.rpartition(".")[0], last))

    def optimizer(self, ids: NDArray[Any], steps: int) -> Section:
        """Parameters and moments after steps of AdamW.

        Its epsilon is 1e-4, not torch's 1e-8: where a gradient is near epsilon, the step multiplies
        what rounding leaves in it by rate / epsilon, and float32 no longer tells how much that is.
        """
        import torch

        runs: dict[str, Arrays] = {}
        config = OptimizerConfig(epsilon=1e-4)
        for dtype in _DTYPES:
            bits = dtype.removeprefix("float")
            with jax.enable_x64(dtype == "float64"):
                state = first_state(config, self._params(dtype))
                inputs, targets = (jnp.asarray(part)[None] for part in (ids[:, :-1], ids[:, 1:]))
                for _ in range(steps):
                    state, _ = train_step(self.model, config, state, inputs, targets)
                moments = {n: optax.tree.get(state.moments, n) for n in ("mu", "nu")}
                runs[f"ours{bits}"] = {
                    f"{words} {name}": x
                    for words, tree in (
                        ("mean gradient of", moments["mu"]),
                        ("mean square of", moments["nu"]),
                        ("updated", state.params),
                    )
                    for name, x in named_tensors(self.cfg, tree).items()
                }
            module = self.reference.build(dtype)
            lr, eps = config.learning_rate, config.epsilon
            adamw = torch.optim.AdamW(module.parameters(), lr=lr, eps=eps)
            for _ in range(steps):
                adamw.zero_grad()
                self._backpropagate(module, ids)
                adamw.step()
            slots: tuple[tuple[str, Callable[[Any], Any]], ...] = (
                ("mean gradient of", partial(_slot, adamw, "exp_avg")),
                ("mean square of", partial(_slot, adamw, "exp_avg_sq")),
                ("updated", lambda parameter: parameter),
            )
            runs[f"theirs{bits}"] = {
                f"{words} {name}": x
                for words, of in slots
                for name, x in self._named(module, of).items()
            }
        return Section(f"optimizer after {steps} steps", findings(FourRuns(**runs), "batch of 3"))

    def tokens(self, prompts: Prompts, count: int) -> list[Tokens]:
        """Greedy tokens in float32, for the first half of each short prompt."""
        count = min(count, self.cfg.context_length // 2)
        if not count:
            return []
        module, found = self.reference.build("float32"), []
        params = self._params("float32")
        length = min(8, self.cfg.context_length - count)
        starts = {n: ids[:1, :length] for n, ids in prompts.items() if n != "full context"}
        ours = generate(self.model, params, [s[0].tolist() for s in starts.values()], count).tokens
        for (name, ids), mine in zip(starts.items(), ours, strict=True):
            for at in range(count):
                theirs32 = self._their_logits(module, ids)
                chosen = int(theirs32.argmax())
                if chosen != mine[at]:
                    found.append(self._parted(name, count, at, ids, mine[at], theirs32))
                    break
                ids = np.append(ids, [[chosen]], axis=1)
            else:
                found.append(Tokens(name, count))
        return found

    def _parted(
        self, name: str, count: int, at: int, ids: NDArray[Any], mine: int, theirs32: NDArray[Any]
    ) -> Tokens:
        chosen = int(theirs32.argmax())
        exact = self._their_logits(self.reference.build("float64"), ids)
        rounding = float(np.abs(theirs32 - exact).max())
        margin = abs(float(exact[chosen] - exact[mine]))
        return Tokens(name, count, at, mine, chosen, margin, rounding)

    def default_precision(self, ids: NDArray[Any]) -> str:
        """What the logits would be with the device's default matrix products."""
        params = self._params("float32")
        with jax.default_matmul_precision("highest"):
            pinned = np.asarray(jax.jit(self.model.apply)({"params": params}, ids))
        with jax.default_matmul_precision("default"):
            default = np.asarray(jax.jit(self.model.apply)({"params": params}, ids))
        apart = np.abs(default - pinned).max() / np.abs(pinned).max()
        return (
            f"with the default matrix products of {jax.default_backend()} the float32 logits "
            f"would move by {apart:.1e}"
        )

    def _named(self, module: Any, of: Callable[[Any], Any]) -> Arrays:
        """What `of` gives for each parameter of a module, under our names, where ours has it.

        None, as the gradient of a parameter that the loss does not reach, is 0.
        """
        arrays = {
            name: np.zeros(p.shape) if (value := of(p)) is None else value.detach().numpy()
            for name, p in module.named_parameters()
        }
        named = self.reference.course_names(arrays)
        return {name: value for name, value in named.items() if name in self.flat}


@partial(jax.jit, static_argnames=("model", "keep"))
def _capture(model: GPTModel, params: Any, ids: Any, keep: Any) -> dict[str, jax.Array]:
    return capture(model, params, ids, keep)


_gradient = jax.jit(
    lambda model, params, inputs, targets: jax.grad(
        lambda p: next_token_loss(model, p, inputs, targets)
    )(params),
    static_argnums=0,
)


def _some_positions(name: str, value: Any) -> Any:
    """At most 128 of the positions of an intermediate, which lie on its axis before the last."""
    length = value.shape[-2]
    if length <= _POSITIONS:
        return value
    return value[..., np.linspace(0, length - 1, _POSITIONS).round().astype(int), :]


def _slot(optimizer: Any, name: str, parameter: Any) -> Any:
    return optimizer.state[parameter].get(name)


def _on_host(arrays: Mapping[str, jax.Array], cfg: GPTConfig) -> Arrays:
    """In forward order, which jit does not keep."""
    return {name: np.asarray(arrays[name]) for name in names(cfg)}


def _unseen(names: list[str]) -> str:
    if not names:
        return ""
    parts = sorted({name.split(".", 2)[-1] for name in names})
    return f"not seen in the PyTorch module: {', '.join(parts)}"
