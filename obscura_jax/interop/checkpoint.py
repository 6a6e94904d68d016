"""Model files on disk: what `load_model` reads, and what `save_model` and its kin write.

The native form is a folder: `config.json` beside `model.safetensors`, whose tensors have the
course's names and torch's (out, in) orientation, so the same file opens in both frameworks.
"""

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict
from numpy.typing import NDArray

from obscura_jax.atomic_files import require_path, write_atomically
from obscura_jax.checks import check_size
from obscura_jax.config import PRESETS, GPTConfig
from obscura_jax.interop import name_tables
from obscura_jax.interop.building import built
from obscura_jax.interop.course_state import (
    ConversionRecord,
    named_tensors,
    to_course,
)
from obscura_jax.interop.destinations import check_free, remove_companions
from obscura_jax.interop.hf_config import to_hf_config, to_model_args
from obscura_jax.interop.locate import (
    CONFIG,
    FORMAT,
    SAFETENSORS_SUFFIX,
    TORCH_SUFFIXES,
    WEIGHT_FILES,
    WEIGHTS,
    SourceError,
    check_no_entry,
    resolve_weights,
    tensors_and_config,
)
from obscura_jax.interop.tokens import NO_TOKENS, TOKENS_FILE, TokenRecord, copies, tokens_at
from obscura_jax.interop.torch_files import write_torch
from obscura_jax.nn.model import GPTModel
from obscura_jax.rng.torch_generator import torch_seed_init
from obscura_jax.safetensors_files import write_safetensors


@dataclass(frozen=True)
class LoadedModel:
    """A model as read from `source`.

    Attributes:
        dialect: "native", "course", "hf", "nanogpt", "flax" or "torch-seed".
        cfg: its config.
        params: its parameter tree, float32.
        audit: what each tensor of the source became, in the source's order.
        tokens: the special tokens and tokenizer that the source has.
    """

    dialect: str
    cfg: GPTConfig
    params: dict[str, Any]
    audit: list[ConversionRecord]
    tokens: TokenRecord = NO_TOKENS


def load_model(
    source: str | Path, *, n_heads: int | None = None, entry: str | None = None
) -> tuple[GPTModel, dict[str, Any]]:
    """Read a model.

    Args:
        source: a folder, native or Hugging Face's (`config.json` beside `model.safetensors`, its
            shards, `pytorch_model.bin` or `flax_model.msgpack`), or its file of weights; a course
            checkpoint or nanoGPT's `ckpt.pt` (`.pth`, `.pt`, which need torch and run none of the
            file's code, or `.safetensors`); or "tiny", the model that the package ships; or "gpt2",
            "gpt2-medium", "gpt2-large", "gpt2-xl", fetched from the Hugging Face hub (a folder of
            such a name is "./gpt2"); or "torch-seed:N[:PRESET]", the weights that PyTorch draws
            after `torch.manual_seed(N)`, made without PyTorch (presets: 124M, the default, gpt2,
            gpt2-medium, ...).
        n_heads: the number of attention heads, where the source does not say it.
        entry: the entry of a PyTorch checkpoint that is the model, such as "ema", where several
            are; "a.b" is the entry "b" of the entry "a".

    Returns:
        The model and its parameters: `model.apply({"params": params}, ids)`.

    Note:
        float32 tensors of a `.safetensors` file are mapped into memory, not read. If that file is
        truncated or rewritten in place, the operating system ends this process (SIGBUS) when it
        reads a missing page. Replace the file by renaming a new one, as `save_model` and
        `obscura convert` do.

    Raises:
        FileNotFoundError: when there is nothing at `source`.
        ValueError: when it is damaged, not a model, or not wholly understood.
    """
    checkpoint = read_checkpoint(source, n_heads=n_heads, entry=entry)
    return GPTModel(checkpoint.cfg), checkpoint.params


def save_model(
    folder: str | Path,
    cfg: GPTConfig | Mapping[str, Any],
    params: Any,
    *,
    tokens: TokenRecord = NO_TOKENS,
    overwrite: bool = True,
) -> None:
    """Write the native form: `config.json` and `model.safetensors` in `folder`.

    All files are written before any takes its place, and take it by renaming: a process that has
    mapped an earlier `model.safetensors` keeps its bytes. What an earlier model in the folder left
    and would be read with this one, such as its tokenizer, is removed; other files stay.

    Args:
        folder: the folder, which is created if it is missing.
        cfg: the model's config.
        params: its parameters.
        tokens: its special tokens and the files of its tokenizer, such as
            `read_checkpoint(source).tokens`. By default none are recorded.
        overwrite: whether to replace a model that is in the folder, as it is by default. The
            commands of `obscura` replace one with `--overwrite` only.

    Raises:
        ValueError: when `params` is not a parameter tree of `GPTModel(cfg)`, or `folder` is a file
            or cannot be written, or has a model that `overwrite` protects.
    """
    cfg = GPTConfig.of(cfg)
    tensors = named_tensors(cfg, params)
    config = {"format": FORMAT, **cfg.to_dict()}
    _put_folder(folder, tensors, config, tokens, overwrite, record=True)


def save_course(
    path: str | Path,
    cfg: GPTConfig | Mapping[str, Any],
    params: Any,
    *,
    overwrite: bool = True,
) -> None:
    """Write a file that the course's `GPTModel(cfg).load_state_dict(..., strict=True)` accepts.

    Raises:
        ValueError: when `params` is not a parameter tree of `GPTModel(cfg)`, `cfg.ln_eps` is not
            the course's 1e-5, torch is missing, or `path` is a folder, does not end in .pth, .pt or
            .safetensors, cannot be written, or is a file that `overwrite` protects.
    """
    tensors = to_course(GPTConfig.of(cfg), params)
    path = _file(path, "a course checkpoint", (".pth", ".pt", SAFETENSORS_SUFFIX), overwrite)
    if path.suffix.lower() == SAFETENSORS_SUFFIX:
        write_atomically(path, {path: partial(write_safetensors, tensors=tensors)})
    else:
        write_atomically(path, {path: partial(write_torch, tensors)})


def save_hf(
    folder: str | Path,
    cfg: GPTConfig | Mapping[str, Any],
    params: Any,
    *,
    tokens: TokenRecord = NO_TOKENS,
    overwrite: bool = True,
) -> None:
    """Write the folder that transformers' `GPT2LMHeadModel.from_pretrained` loads.

    The arguments are those of `save_model`. Special tokens that `tokens` lacks are null.

    Raises:
        ValueError: when `params` is not a parameter tree of `GPTModel(cfg)`, or `folder` is a file
            or cannot be written.
    """
    cfg = GPTConfig.of(cfg)
    tensors = name_tables.to_dialect(name_tables.HUGGING_FACE, cfg, named_tensors(cfg, params))
    _put_folder(folder, tensors, to_hf_config(cfg, tokens.to_dict()), tokens, overwrite)


def save_nanogpt(
    path: str | Path,
    cfg: GPTConfig | Mapping[str, Any],
    params: Any,
    *,
    tokens: TokenRecord = NO_TOKENS,
    overwrite: bool = True,
) -> None:
    """Write a `ckpt.pt` with `model`, `model_args` and `config`, as nanoGPT's training does.

    The ids of `tokens` are recorded in `config`; there is no room for files of a tokenizer.

    Raises:
        ValueError: when `params` is not a parameter tree of `GPTModel(cfg)`, the head is not the
            token table, which nanoGPT always ties, `cfg.ln_eps` is not its 1e-5, torch is missing,
            or `path` is a folder, does not end in .pt or .pth, cannot be written, or is a file
            that `overwrite` protects.
    """
    cfg = GPTConfig.of(cfg)
    ours, beside = named_tensors(cfg, params), to_model_args(cfg, tokens.to_dict())
    if not cfg.tie_weights and not np.array_equal(ours["out_head.weight"], ours["tok_emb.weight"]):
        raise ValueError("nanoGPT's head is its token table, and this model's is not: use --to hf")
    tensors = name_tables.to_dialect(name_tables.NANOGPT, cfg, ours)
    path = _file(path, "a nanoGPT checkpoint", (".pt", ".pth"), overwrite)
    write_atomically(path, {path: partial(write_torch, tensors, beside=beside)})


def read_checkpoint(
    source: str | Path, *, n_heads: int | None = None, entry: str | None = None
) -> LoadedModel:
    """Read a model with all that is known of it; see `load_model`."""
    if n_heads is not None:
        check_size("n_heads", n_heads)
    if str(source).startswith("torch-seed:"):
        check_no_entry(source, entry)
        return _from_seed(str(source), n_heads)
    path = resolve_weights(source)
    try:
        tensors, dialect, known = tensors_and_config(path, entry)
        recorded = known.pop("tokens", {})  # in the checkpoint itself
        in_folder = path.name in WEIGHT_FILES
        tokens = tokens_at(path.parent) if in_folder else TokenRecord.of(recorded)
        if n_heads is not None:
            if known.get("n_heads", n_heads) != n_heads:
                raise ValueError(f"it has n_heads={known['n_heads']}, not {n_heads}")
            known["n_heads"] = n_heads
        found, cfg, params, audit = built(tensors, known)
        dialect = (found == "course" and dialect) or found
        return LoadedModel(dialect, cfg, params, audit, tokens)
    except SourceError:
        raise
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _from_seed(source: str, n_heads: int | None) -> LoadedModel:
    match = re.fullmatch(r"torch-seed:(-?[0-9]{1,20})(?::(.+))?", source)
    if not match or (preset := match[2] or "124M") not in PRESETS:
        raise ValueError(
            f"{source[:80]!r} is not torch-seed:N or torch-seed:N:PRESET, N a whole number of "
            f"64 bits and PRESET one of {', '.join(PRESETS)}"
        )
    cfg = PRESETS[preset]
    if n_heads not in (None, cfg.n_heads):
        raise ValueError(f"{source} has n_heads={cfg.n_heads}, not {n_heads}")
    params = torch_seed_init(cfg, int(match[1]))
    audit = [
        ConversionRecord(name, name, "drawn as torch draws it", np.asarray(leaf))
        for name, leaf in flatten_dict(params, sep=".").items()
    ]
    return LoadedModel("torch-seed", cfg, params, audit)


def _put_folder(
    folder: str | Path,
    tensors: Mapping[str, NDArray[Any]],
    config: dict[str, Any],
    tokens: TokenRecord,
    overwrite: bool,
    record: bool = False,
) -> None:
    path = require_path(folder)
    if path.suffix.lower() in (*TORCH_SUFFIXES, SAFETENSORS_SUFFIX) and not os.path.isdir(path):
        raise ValueError(
            f"{folder} is a file's name, and this form is a folder: name a folder, or write "
            "a course checkpoint (--to course)"
        )
    if os.path.exists(path) and not os.path.isdir(path):
        raise ValueError(f"{folder} is a file; this form is a folder")
    check_free(path, overwrite)
    files = copies(tokens)
    if record and (entries := tokens.to_dict()):
        files[TOKENS_FILE] = _json(entries)
    files |= {WEIGHTS: partial(write_safetensors, tensors=tensors), CONFIG: _json(config)}
    write_atomically(path, {path / name: write for name, write in files.items()})
    remove_companions(path, files)


def _json(entries: Mapping[str, Any]) -> Callable[[Path], object]:
    text = json.dumps(entries, indent=2) + "\n"
    return lambda path: path.write_text(text, encoding="utf-8")


def _file(path: str | Path, what: str, suffixes: tuple[str, ...], overwrite: bool) -> Path:
    path = require_path(path)
    if os.path.isdir(path):
        raise ValueError(f"{path} is a folder; {what} is a file")
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{path} must end in {' or '.join(suffixes)}, as {what} does")
    check_free(path, overwrite)
    return path
