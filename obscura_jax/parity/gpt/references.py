"""The PyTorch side of the lab: our reference, transformers' GPT-2, or a user's module."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from obscura_jax.config import GPTConfig
from obscura_jax.extras import require
from obscura_jax.interop import name_tables
from obscura_jax.interop.hf_config import to_hf_config
from obscura_jax.interop.recognize import recognize
from obscura_jax.interop.to_course import to_course_names
from obscura_jax.parity.gpt.torch_capture import Tap, course_taps, hugging_face_taps
from obscura_jax.parity.gpt.users_class import UsersClass
from obscura_jax.parity.guest import Guest

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Reference:
    """A PyTorch implementation with the weights under test.

    Attributes:
        label: its name.
        build: returns the module in evaluation mode, with parameters of the named type.
        taps: the places where its intermediates are read.
        course_names: renames its state dict, or gradients by the same keys, to the course's names.
        guest: runs its code.
        absent: names of the weights that it has no parameter for.
        users: whether it is a user's module.
    """

    label: str
    build: Callable[[str], Any]
    taps: list[Tap]
    course_names: Callable[[Arrays], Arrays]
    guest: Guest
    absent: tuple[str, ...] = ()
    users: bool = False


def reference(against: str, cfg: GPTConfig, params: Arrays, source: str = "") -> Reference:
    """Return the reference that `against` names.

    Args:
        against: "course", "hf" or "FILE.py:CLASS".
        cfg: the model.
        params: its parameters, float32, by dotted name.
        source: where the weights come from. If it is a Hugging Face folder, "hf" lets transformers
            read it.

    Raises:
        FileNotFoundError: if the user's file is missing.
        ValueError: if torch or transformers is missing, or the user's module does not build or
            does not accept the weights.
    """
    require("torch", "parity", "obscura parity")
    if against == "course":
        return _course(cfg, params)
    if against == "hf":
        return _hugging_face(cfg, params, source)
    return _users(against, cfg, params)


def _course(cfg: GPTConfig, params: Arrays) -> Reference:
    import torch

    from obscura_jax.parity.gpt import torch_reference

    def build(dtype: str) -> Any:
        with torch.device("meta"):
            module = torch_reference.GPTModel(cfg.to_dict())
        state = _tensors(params, dtype)
        if cfg.tie_weights:
            state["out_head.weight"] = state["tok_emb.weight"]
        masks = {name for name, _ in module.named_buffers()}
        mask = torch_reference.causal_mask(cfg.context_length)
        module.load_state_dict({**state, **dict.fromkeys(masks, mask)}, strict=True, assign=True)
        for norm in (m for m in module.modules() if isinstance(m, torch_reference.LayerNorm)):
            norm.eps = cfg.ln_eps
        return _tied(module, cfg).requires_grad_(True).eval()

    label = "obscura_jax.parity.gpt.torch_reference.GPTModel"
    taps = course_taps(cfg.n_layers)
    return Reference(label, build, taps, lambda state: state, Guest(label))


def _hugging_face(cfg: GPTConfig, params: Arrays, source: str) -> Reference:
    transformers = require("transformers", "parity", "--against hf")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with_biases = replace(cfg, qkv_bias=True)  # transformers' model always has them
    folder = Path(source) if (Path(source) / "config.json").is_file() else None
    own = folder is not None and '"n_embd"' in (folder / "config.json").read_text("utf-8")

    def build(dtype: str) -> Any:
        import torch

        if own:  # transformers reads the files itself, which checks our reading too
            model = transformers.GPT2LMHeadModel.from_pretrained(
                folder, local_files_only=True, attn_implementation="eager"
            )
        else:
            config = transformers.GPT2Config(**to_hf_config(cfg), attn_implementation="eager")
            model = transformers.GPT2LMHeadModel(config)
            theirs = name_tables.to_dialect(name_tables.HUGGING_FACE, cfg, params)
            if cfg.tie_weights:
                theirs[name_tables.HUGGING_FACE.head.foreign] = params["tok_emb.weight"]
            model.load_state_dict(_tensors(theirs, "float32"), strict=True)
        model.config.use_cache = False
        return model.to(getattr(torch, dtype)).eval()

    def course_names(state: Arrays) -> Arrays:
        parts = [found.parts for found in to_course_names(recognize(state), with_biases)]
        return {name: part for tensor in parts for name, part in tensor.items()}

    label = f"transformers {transformers.__version__} GPT2LMHeadModel"
    return Reference(
        label,
        build,
        hugging_face_taps(cfg.n_layers),
        course_names,
        Guest(label),
    )


def _users(spec: str, cfg: GPTConfig, params: Arrays) -> Reference:
    import torch

    users = UsersClass(spec)
    first, given = users.build(cfg), dict(params)
    with users.guest("does not list its parameters"):
        shapes = {k: tuple(v.shape) for k, v in first.state_dict().items()}
        needed = {k for k, _ in first.named_parameters()}
    del first
    if not needed & given.keys():
        raise ValueError(
            f"{spec} has no parameter with a course name, such as tok_emb.weight; use these names"
        )
    if cfg.tie_weights and "out_head.weight" in needed:
        given["out_head.weight"] = params["tok_emb.weight"]
    if lacking := needed - given.keys():
        raise ValueError(
            f"{spec} has parameters that the weights lack: {name_tables.summarize_names(lacking)}"
        )
    for key in shapes:
        if key in given and shapes[key] != given[key].shape:
            raise ValueError(
                f"{spec}: {key} has shape {shapes[key]}, but the weights have {given[key].shape}"
            )
    held = {k: v for k, v in given.items() if k in shapes}

    def build(dtype: str) -> Any:
        module = users.build(cfg, dtype)
        with users.guest("does not accept the weights"):
            # Convert the module first: one built in bfloat16 would round the weights.
            module = _tied(module, cfg).to("cpu", getattr(torch, dtype))
            module.load_state_dict(_tensors(held, "float32"), strict=False)
            return module.eval()

    absent = tuple(sorted(given.keys() - shapes.keys()))
    taps = course_taps(cfg.n_layers)
    return Reference(spec, build, taps, lambda state: state, users.guest, absent, users=True)


def _tied(module: Any, cfg: GPTConfig) -> Any:
    if cfg.tie_weights and hasattr(module, "out_head") and hasattr(module, "tok_emb"):
        module.out_head.weight = module.tok_emb.weight
    return module


def _tensors(params: Arrays, dtype: str) -> dict[str, Any]:
    """Return tensors that share the memory of the arrays if these have the right type."""
    import torch

    return {
        name: torch.from_numpy(np.require(value.astype(dtype, copy=False), requirements=["C", "W"]))
        for name, value in params.items()
    }
