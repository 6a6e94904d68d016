"""Run both frameworks on the same weights, in one precision at a time.

PyTorch always runs on the CPU, so the two never share an accelerator, and no process is forked. The
modules and parameters of a precision exist only while it runs.
"""

from collections import OrderedDict
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
from obscura_jax.parity.gpt.capture import Reduce, capture
from obscura_jax.parity.gpt.compare import Arrays, Outputs
from obscura_jax.parity.gpt.outputs import logits_in
from obscura_jax.parity.gpt.references import Reference
from obscura_jax.parity.gpt.torch_capture import LOGITS, capture_torch
from obscura_jax.parity.gpt.users_class import default_type
from obscura_jax.training.loss import next_token_loss
from obscura_jax.training.optimizer import OptimizerConfig
from obscura_jax.training.step import init_train_state, train_step_jit

Prompts = Mapping[str, NDArray[np.int32]]
Precision = Literal["float32", "float64"]
# If a gradient is near epsilon, Adam's step multiplies its rounding error by rate / epsilon. With
# torch's epsilon of 1e-8, the float32 run would no longer show the size of that error.
_ADAMW = OptimizerConfig(epsilon=1e-4)


class PairedRuns:
    """Runs of our model and of a PyTorch module; results are (ours, theirs).

    Attributes:
        cfg: the model.
        flat: its parameters, float32, by dotted name.
        reference: the PyTorch side.
        model: our model.
    """

    def __init__(self, cfg: GPTConfig, flat: Arrays, reference: Reference) -> None:
        self.cfg, self.flat, self.reference = cfg, flat, reference
        self.model = GPTModel(cfg)

    def params(self, dtype: Precision) -> Any:
        """Return our parameter tree; float64 needs x64 to be enabled."""
        leaves = {tuple(k.split(".")): jnp.asarray(v, dtype) for k, v in self.flat.items()}
        return unflatten_dict(leaves)

    def intermediates(
        self, dtype: Precision, prompts: Prompts, reduce: Reduce | None = None
    ) -> dict[str, Outputs]:
        """Return the intermediates of each prompt that both have, through `reduce` if given."""
        ours, wanted = {}, frozenset(tap.name for tap in self.reference.taps)
        with jax.enable_x64(dtype == "float64"):
            params = self.params(dtype)
            for name, ids in prompts.items():
                found = _capture(self.model, params, ids, reduce, wanted)
                ours[name] = {key: np.asarray(x) for key, x in found.items()}
            del params
        module = self.reference.build(dtype)
        theirs = {n: self.their_intermediates(module, ids, reduce) for n, ids in prompts.items()}
        return {name: Outputs(ours[name], theirs[name]) for name in prompts}

    def their_intermediates(
        self, module: Any, ids: NDArray[Any], reduce: Reduce | None = None
    ) -> Arrays:
        """Return all intermediates of a PyTorch module, through `reduce` if given."""
        with self._guest(module):
            taps = self.reference.taps
            return capture_torch(module, ids, taps, reduce, self.cfg.vocab_size)

    def gradients(self, dtype: Precision, ids: NDArray[Any]) -> Outputs:
        """Return the gradients of the mean next-token loss, in the order of the backward pass."""
        with jax.enable_x64(dtype == "float64"):
            found = _gradient(self.model, self.params(dtype), ids[:, :-1], ids[:, 1:])
            ours = named_tensors(self.cfg, found)
            del found
        theirs = self.their_gradients(self.reference.build(dtype), ids)
        place = {name: n for n, name in enumerate(names(self.cfg))}  # without the output head
        order = sorted(ours, key=lambda name: -place.get(name.rpartition(".")[0], len(place)))
        return Outputs({name: ours[name] for name in order}, theirs)

    def their_gradients(self, module: Any, ids: NDArray[Any]) -> Arrays:
        """Return the gradients of a PyTorch module, by our names."""
        with self.reference.guest("fails in training"):
            module.zero_grad()
        self._backpropagate(module, ids)
        return self._named(module, lambda p: p.grad)

    def optimizer_state(self, dtype: Precision, ids: NDArray[Any], steps: int) -> Outputs:
        """Return both moments of AdamW, and the parameters, after `steps` steps."""
        import torch

        with jax.enable_x64(dtype == "float64"):
            state = init_train_state(_ADAMW, self.params(dtype))
            inputs, targets = (jnp.asarray(part)[None] for part in (ids[:, :-1], ids[:, 1:]))
            for _ in range(steps):
                state, _ = train_step_jit(self.model, _ADAMW, state, inputs, targets)
            mean, square = (optax.tree.get(state.opt_state, name) for name in ("mu", "nu"))
            trees = (mean, square, state.params)
            ours = [named_tensors(self.cfg, tree) for tree in trees]
        module = self.reference.build(dtype)
        with self.reference.guest("fails in training"):
            parameters = list(module.parameters())
        adamw = torch.optim.AdamW(parameters, lr=_ADAMW.learning_rate, eps=_ADAMW.epsilon)
        for _ in range(steps):
            adamw.zero_grad()
            self._backpropagate(module, ids)
            adamw.step()
        theirs = [
            self._named(module, lambda p: adamw.state[p].get("exp_avg")),
            self._named(module, lambda p: adamw.state[p].get("exp_avg_sq")),
            self._named(module, lambda p: p),
        ]
        return Outputs(_labelled(ours), _labelled(theirs))

    def their_logits(self, module: Any, ids: NDArray[Any]) -> NDArray[Any]:
        """Return a PyTorch module's logits at the last position of the first row, (V,)."""
        with self._guest(module):
            return capture_torch(module, ids, [LOGITS])["logits"][0, -1]

    def _backpropagate(self, module: Any, ids: NDArray[Any]) -> None:
        """Add the gradients of the mean next-token loss to those of a PyTorch module."""
        import torch

        rows = torch.from_numpy(ids.astype(np.int64))
        inputs, targets = rows[:, :-1].clone(), rows[:, 1:]  # the module may overwrite its input
        with self._guest(module):
            logits = logits_in(module(inputs), tuple(inputs.shape), self.cfg.vocab_size)
            with torch.enable_grad():  # the module may have left it off
                flat = logits.cpu().flatten(0, 1)
                torch.nn.functional.cross_entropy(flat, targets.flatten()).backward()

    def _named(self, module: Any, of: Callable[[Any], Any]) -> Arrays:
        """Return `of(parameter)` for each parameter that our model has too, by our name.

        None, such as the gradient of a parameter that the loss does not depend on, becomes 0.
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
        """Context manager: run a module with constants of its type; errors become one line."""
        with self.reference.guest("fails on a prompt"):
            dtype = str(next(module.parameters()).dtype).removeprefix("torch.")
            with default_type(dtype):
                yield


def _labelled(trees: Sequence[Arrays]) -> Arrays:
    labels = ("mean gradient of", "mean square of", "updated")
    named = zip(labels, trees, strict=True)
    return {f"{label} {name}": x for label, of in named for name, x in of.items()}


@partial(jax.jit, static_argnames=("model", "reduce", "wanted"))
def _capture(
    model: GPTModel, params: Any, ids: Any, reduce: Reduce | None, wanted: frozenset[str]
) -> dict[str, jax.Array]:
    found = capture(model, params, ids, reduce)
    return OrderedDict((name, x) for name, x in found.items() if name in wanted)


@partial(jax.jit, static_argnames=("model",))
def _gradient(model: GPTModel, params: Any, inputs: Any, targets: Any) -> Any:
    return jax.grad(lambda params: next_token_loss(model, params, inputs, targets))(params)
