"""What both frameworks compute from the same weights, in one precision at a time.

PyTorch runs on the CPU, whatever JAX runs on, so the two never share an accelerator; and no process
is forked. Modules and parameters of a precision live only while it runs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import unflatten_dict
from numpy.typing import NDArray

from obscura_jax.config import GPTConfig
from obscura_jax.interop.course_state import named_tensors
from obscura_jax.nn.intermediates import names
from obscura_jax.nn.model import GPTModel
from obscura_jax.parity.capture import Keep, capture, capture_torch
from obscura_jax.parity.compare import Arrays
from obscura_jax.parity.constants import Constants
from obscura_jax.parity.outputs import logits_in
from obscura_jax.parity.references import Reference
from obscura_jax.training.loss import next_token_loss
from obscura_jax.training.optimizer import OptimizerConfig
from obscura_jax.training.step import init_train_state, train_step_jit

Prompts = Mapping[str, NDArray[np.int32]]
Precision = Literal["float32", "float64"]
# Where a gradient is near epsilon, Adam's step multiplies what rounding leaves in it by
# rate / epsilon: with torch's 1e-8, float32 no longer tells how much that is.
_ADAMW = OptimizerConfig(epsilon=1e-4)


class PairedRuns:
    """Ours and theirs, always in this order.

    Attributes:
        cfg: the model.
        flat: its parameters, float32, by dotted name.
        reference: the PyTorch side.
        model: ours.
        constants: the float32 constants of a user's program; with `as_written` they stay rounded.
    """

    def __init__(
        self, cfg: GPTConfig, flat: Arrays, reference: Reference, *, as_written: bool = False
    ) -> None:
        self.cfg, self.flat, self.reference = cfg, flat, reference
        self.model = GPTModel(cfg)
        self.constants = Constants(as_written=as_written or not reference.users)

    def params(self, dtype: Precision) -> Any:
        """Our parameter tree; float64 only where x64 is on."""
        leaves = {tuple(k.split(".")): jnp.asarray(v, dtype) for k, v in self.flat.items()}
        return unflatten_dict(leaves)

    def flat64(self) -> Arrays:
        """Our parameters in float64, by dotted name."""
        return {name: np.asarray(x, np.float64) for name, x in self.flat.items()}

    def intermediates(
        self, dtype: Precision, prompts: Prompts, keep: Keep | None = None
    ) -> tuple[Mapping[str, Arrays], Mapping[str, Arrays]]:
        """For each prompt all intermediates, in forward order, as `keep` leaves them."""
        ours = {}
        with jax.enable_x64(dtype == "float64"):
            params = self.params(dtype)
            for name, ids in prompts.items():
                found = _capture(self.model, params, ids, keep)
                ours[name] = {key: np.asarray(x) for key, x in found.items()}
            del params
        module = self.build(dtype)
        theirs = {n: self.their_intermediates(module, ids, keep) for n, ids in prompts.items()}
        return ours, theirs

    def build(self, dtype: Precision) -> Any:
        """Return a module of theirs."""
        with self.constants.exact(dtype):
            return self.reference.build(dtype)

    def their_intermediates(
        self, module: Any, ids: NDArray[Any], keep: Keep | None = None
    ) -> Arrays:
        """Return all intermediates of a module of theirs, as `keep` leaves them."""
        with self._guest(module):
            taps = self.reference.taps
            return capture_torch(module, ids, taps, keep, self.cfg.vocab_size)

    def gradients(self, dtype: Precision, ids: NDArray[Any]) -> tuple[Arrays, Arrays]:
        """Those of the mean next-token loss, in the order in which it reaches the parameters."""
        with jax.enable_x64(dtype == "float64"):
            found = _gradient(self.model, self.params(dtype), ids[:, :-1], ids[:, 1:])
            ours = named_tensors(self.cfg, found)
            del found
        module = self.build(dtype)
        self.backpropagate(module, ids)
        place = {name: n for n, name in enumerate(names(self.cfg))}  # the head has none: it is last
        order = sorted(ours, key=lambda name: -place.get(name.rpartition(".")[0], len(place)))
        return {name: ours[name] for name in order}, self._named(module, lambda p: p.grad)

    def slots(self, dtype: Precision, ids: NDArray[Any], steps: int) -> tuple[Arrays, Arrays]:
        """Moments and parameters after steps of AdamW."""
        import torch

        with jax.enable_x64(dtype == "float64"):
            state = init_train_state(_ADAMW, self.params(dtype))
            inputs, targets = (jnp.asarray(part)[None] for part in (ids[:, :-1], ids[:, 1:]))
            for _ in range(steps):
                state, _ = train_step_jit(self.model, _ADAMW, state, inputs, targets)
            mean, square = (optax.tree.get(state.opt_state, name) for name in ("mu", "nu"))
            trees = (mean, square, state.params)
            ours = [named_tensors(self.cfg, tree) for tree in trees]
        module = self.build(dtype)
        with self.reference.guest("fails in training"):
            parameters = list(module.parameters())
        adamw = torch.optim.AdamW(parameters, lr=_ADAMW.learning_rate, eps=_ADAMW.epsilon)
        for _ in range(steps):
            adamw.zero_grad()
            self.backpropagate(module, ids)
            adamw.step()
        theirs = [
            self._named(module, lambda p: adamw.state[p].get("exp_avg")),
            self._named(module, lambda p: adamw.state[p].get("exp_avg_sq")),
            self._named(module, lambda p: p),
        ]
        return _labelled(ours), _labelled(theirs)

    def their_logits(self, module: Any, ids: NDArray[Any]) -> NDArray[Any]:
        """Those of the last position of the first row, (V,), from a module of theirs."""
        taps = [tap for tap in self.reference.taps if tap.name == "logits"]
        with self._guest(module):
            return capture_torch(module, ids, taps)["logits"][0, -1]

    def backpropagate(self, module: Any, ids: NDArray[Any]) -> None:
        """Add the gradients of the mean next-token loss to those of a module of theirs."""
        import torch

        rows = torch.from_numpy(ids.astype(np.int64))
        inputs, targets = rows[:, :-1].clone(), rows[:, 1:]  # the module may write into its input
        with self._guest(module):
            logits = logits_in(module(inputs), tuple(inputs.shape), self.cfg.vocab_size)
            with torch.enable_grad():  # the module may have left it off
                flat = logits.cpu().flatten(0, 1)
                torch.nn.functional.cross_entropy(flat, targets.flatten()).backward()

    def _named(self, module: Any, of: Callable[[Any], Any]) -> Arrays:
        """What `of` gives for each parameter of a module, under our names, where ours has it.

        None, as the gradient of a parameter that the loss does not reach, is 0.
        """
        with self.reference.guest("fails in training"):
            parameters = dict(module.named_parameters())
        arrays = {
            name: np.zeros(p.shape) if (value := of(p)) is None else value.detach().numpy()
            for name, p in parameters.items()
        }
        named = self.reference.course_names(arrays)
        return {name: value for name, value in named.items() if name in self.flat}

    @contextmanager
    def _guest(self, module: Any) -> Iterator[None]:
        """Context manager: run theirs, an error of which is one line; its constants exact."""
        with self.reference.guest("fails on a prompt"):
            dtype = str(next(module.parameters()).dtype).removeprefix("torch.")
            with self.constants.exact(dtype):
                yield


def _labelled(slots: Sequence[Arrays]) -> Arrays:
    labels = ("mean gradient of", "mean square of", "updated")
    named = zip(labels, slots, strict=True)
    return {f"{label} {name}": x for label, of in named for name, x in of.items()}


@partial(jax.jit, static_argnames=("model", "keep"))
def _capture(model: GPTModel, params: Any, ids: Any, keep: Keep | None) -> dict[str, jax.Array]:
    return capture(model, params, ids, keep)


@partial(jax.jit, static_argnames=("model",))
def _gradient(model: GPTModel, params: Any, inputs: Any, targets: Any) -> Any:
    return jax.grad(lambda params: next_token_loss(model, params, inputs, targets))(params)
