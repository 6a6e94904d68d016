"""Names and shapes: tensors as a file has them <-> a config and a parameter tree.

A conversion is total. Every tensor of the source is used once, every leaf of the tree is filled
once, and every shape is the one that the model itself declares.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from obscura_jax.config import GPT_CONFIG_124M, GPTConfig
from obscura_jax.interop.name_tables import some
from obscura_jax.nn.parameters import init_shapes

Tensors = Mapping[str, NDArray[Any]]
_MASK = "trf_blocks.{}.att.mask"


@dataclass(frozen=True)
class ConversionRecord:
    """What one tensor of the source became: a row of the audit.

    Attributes:
        source: its name in the source, or "-" for what is absent there.
        target: the leaves it fills, or "-" for what is checked and dropped.
        note: what was done to it.
        values: the tensor, as it is in the source.
    """

    source: str
    target: str
    note: str
    values: NDArray[Any] = field(repr=False, compare=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape in the source."""
        return self.values.shape

    @property
    def dtype(self) -> str:
        """Its type in the source."""
        return str(self.values.dtype)

    @property
    def checksum(self) -> str:
        """The first 16 digits of the SHA-256 of its bytes, row by row, in the source."""
        return hashlib.sha256(self.values.tobytes()).hexdigest()[:16]


def parameter_shapes(cfg: GPTConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of `GPTModel(cfg)` under its dotted name; allocates nothing."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in _block_shapes(replace(cfg, n_layers=1)).items():
        blocks = range(cfg.n_layers) if name.startswith("trf_blocks.0.") else (0,)
        shapes |= {name.replace(".0.", f".{n}.", 1): shape for n in blocks}
    return shapes


@lru_cache(maxsize=16)
def _block_shapes(cfg: GPTConfig) -> dict[str, tuple[int, ...]]:
    return {name: leaf.shape for name, leaf in _leaves(init_shapes(cfg)).items()}


def infer_config(tensors: Tensors, known: Mapping[str, Any]) -> GPTConfig:
    """The config of a course state dict: sizes from the shapes, the rest from `known`.

    A drop rate that `known` lacks is the course's, 0.1; nothing but training looks at it. So is the
    output head, which the course never ties to the embedding.

    Args:
        tensors: the state dict.
        known: config entries from elsewhere (a file's own config, the command line); they must
            agree with the shapes.

    Raises:
        ValueError: when the tensors are not a course model, when `known` contradicts them, or when
            `n_heads` is not in `known`: no shape depends on it.
    """
    for name in ("tok_emb.weight", "pos_emb.weight"):
        if name not in tensors:
            has = f"its tensors are {some(tensors)}" if tensors else "it has no tensors"
            raise ValueError(f"not a course checkpoint: {name} is missing, {has}")
        if tensors[name].ndim != 2 or 0 in tensors[name].shape:
            raise ValueError(f"{name} must be a matrix, got shape {tensors[name].shape}")
    vocab_size, emb_dim = tensors["tok_emb.weight"].shape
    context_length, position_dim = tensors["pos_emb.weight"].shape
    if emb_dim != position_dim:
        raise ValueError(f"tok_emb.weight has width {emb_dim}, pos_emb.weight {position_dim}")
    for name, value, source in (
        ("vocab_size", vocab_size, "tok_emb.weight"),
        ("emb_dim", emb_dim, "tok_emb.weight"),
        ("context_length", context_length, "pos_emb.weight"),
    ):
        if known.get(name, value) != value:
            raise ValueError(f"the config says {name}={known[name]!r}, {source} has {value}")
    if "n_heads" not in known:
        raise ValueError(
            f"the number of heads cannot be read off the tensors: give n_heads (--n-heads), "
            f"a divisor of emb_dim={emb_dim}; GPT-2 has heads of width 64, here {emb_dim / 64:g}"
        )
    if "out_head.weight" not in tensors and "tie_weights" not in known:
        raise ValueError(
            "missing tensors: out_head.weight; only a config that says tie_weights does without it"
        )
    # The number of blocks and the presence of biases go by most of the names, so that from_course
    # can name the few that do not fit.
    blocks = Counter(m[1] for name in tensors if (m := re.match(r"trf_blocks\.([^.]+)\.", name)))
    n_layers = sum(2 * count > max(blocks.values()) for count in blocks.values())
    biases = sum(
        re.search(r"\.att\.W_(query|key|value)\.bias$", name) is not None for name in tensors
    )
    found = {
        "n_layers": max(n_layers, 1),
        "qkv_bias": 2 * biases > 3 * n_layers,
        "drop_rate": GPT_CONFIG_124M["drop_rate"],
    }
    sizes = {"vocab_size": vocab_size, "emb_dim": emb_dim, "context_length": context_length}
    cfg = GPTConfig.of({**found, **known, **sizes})
    if cfg.n_layers > len(tensors):
        raise ValueError(f"the config says n_layers={cfg.n_layers}, there are {n_layers} blocks")
    return cfg


def from_course(
    tensors: Tensors, cfg: GPTConfig, *, share: bool = False
) -> tuple[dict[str, Any], list[ConversionRecord]]:
    """A parameter tree of `GPTModel(cfg)` from a course state dict, and the audit of how.

    Values are kept as they are in float32, widened from float16 and bfloat16, rounded from float64.
    They are copied, or with `share` left where they are if they can be: then nobody else may change
    them. Tensors that share memory become leaves that do not, since a leaf may be written to. The
    causal mask of each block is checked and dropped.

    Raises:
        ValueError: naming missing or unexpected tensors, or the tensor of a wrong shape or type, or
            with values that float32 does not hold: infinities, NaN, too large ones.
    """
    shapes = parameter_shapes(cfg)
    masks = {_MASK.format(n) for n in range(cfg.n_layers)}
    needed = shapes.keys() | masks if masks & tensors.keys() else shapes.keys()  # all or none
    _check_names(needed, tensors.keys())
    flat: dict[str, jax.Array] = {}
    shared: set[int] = set()  # addresses
    audit: list[ConversionRecord] = []
    for name, tensor in tensors.items():
        target, note = name, "as it is"
        if name in masks:
            _check_mask(name, tensor, cfg.context_length)
            target, note = "-", "causal mask: checked, dropped"
        else:
            _check_tensor(name, tensor, shapes[name])
            if tensor.dtype != np.float32:
                wider = tensor.dtype.itemsize > 4
                note = "rounded to float32" if wider else "widened to float32"
            flat[name] = _finite_float32(name, tensor, share and tensor.ctypes.data not in shared)
            shared.add(tensor.ctypes.data)
        audit.append(ConversionRecord(name, target, note, tensor))
    return _tree(flat), audit


def to_course(cfg: GPTConfig, params: Any) -> dict[str, NDArray[Any]]:
    """The course's state dict for `params`, its mask buffers and output head included.

    Raises:
        ValueError: when `params` is not a parameter tree of `GPTModel(cfg)`, or when the course's
            layer norm, whose eps is fixed, would compute something else.
    """
    if cfg.ln_eps != GPTConfig.ln_eps:
        raise ValueError(
            f"the course's layer norm has eps {GPTConfig.ln_eps}, and this model's ln_eps is "
            f"{cfg.ln_eps}: keep it in the native form"
        )
    tensors = named_tensors(cfg, params)
    if cfg.tie_weights:  # the course's model always has a head of its own
        tensors["out_head.weight"] = tensors["tok_emb.weight"]
    future = np.triu(np.ones((cfg.context_length, cfg.context_length), np.float32), k=1)
    return tensors | {_MASK.format(n): future for n in range(cfg.n_layers)}


def named_tensors(cfg: GPTConfig, params: Any) -> dict[str, NDArray[Any]]:
    """`params` as host arrays under their dotted names, checked to be what `GPTModel(cfg)` has.

    Raises:
        ValueError: naming missing or unexpected leaves, or the leaf of a wrong shape or type.
    """
    leaves, shapes = _leaves(params), parameter_shapes(cfg)
    _check_names(shapes.keys(), leaves.keys())
    tensors = {name: np.asarray(leaves[name]) for name in shapes}
    for name, shape in shapes.items():
        _check_tensor(name, tensors[name], shape)
    return tensors


def _leaves(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in leaves}


def _tree(leaves: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *path, last = name.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = leaf
    return tree


def _check_names(needed: Set[str], given: Set[str]) -> None:
    differences = {"missing": needed - given, "unexpected": given - needed}
    if wrong := [f"{kind} tensors: {some(names)}" for kind, names in differences.items() if names]:
        raise ValueError("; ".join(wrong))


def _check_tensor(name: str, tensor: NDArray[Any], shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise ValueError(f"{name} has shape {tensor.shape}, the model needs {shape}")
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        raise ValueError(f"{name} has type {tensor.dtype}, not a floating-point type")


def _finite_float32(name: str, tensor: NDArray[Any], share: bool) -> jax.Array:
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is not finite, and refused
        values = np.asarray(tensor, np.float32)
        # The sum of squares is a quick look: 0.02 s for the 124M model, where isfinite takes 0.2.
        finite = np.isfinite(np.vdot(values, values)) or np.isfinite(values).all()
    if not finite:
        raise ValueError(f"{name} holds NaN, infinite values or values too large for float32")
    return jax.device_put(values, may_alias=True) if share else jnp.array(values)


def _check_mask(name: str, mask: NDArray[Any], context_length: int) -> None:
    if mask.shape != (context_length, context_length):
        raise ValueError(f"{name} has shape {mask.shape}, not the context's {context_length} twice")
    if not np.array_equal(mask != 0, np.triu(np.ones_like(mask, bool), k=1)):
        raise ValueError(f"{name} is not the causal mask (ones above the diagonal)")
