"""Model files on disk: `load_model` reads them; `save_model` and three other functions write them.

The native form is a folder with `config.json` and `model.safetensors`. Its tensors have the
course's names and torch's (out, in) orientation, so both frameworks can open the file.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from obscura_jax.atomic_files import require_path, write_atomically
from obscura_jax.checks import check_size
from obscura_jax.config import GPTConfig
from obscura_jax.interop.build import LoadedModel, build, build_from_seed
from obscura_jax.interop.course_state import named_tensors, to_course
from obscura_jax.interop.destinations import check_free, remove_companions
from obscura_jax.interop.hf_config import to_hf_config, to_model_args
from obscura_jax.interop.locate import (
    CONFIG,
    FORMAT,
    SAFETENSORS_SUFFIX,
    TORCH_SUFFIXES,
    WEIGHTS,
    resolve_weights,
)
from obscura_jax.interop.name_tables import HUGGING_FACE, NANOGPT, Tensors, to_dialect
from obscura_jax.interop.read_weights import check_no_entry, read_weights
from obscura_jax.interop.tokens import NO_TOKENS, TOKENS_FILE, TokenRecord, copies
from obscura_jax.interop.torch_files import write_torch
from obscura_jax.nn.model import GPTModel
from obscura_jax.safetensors_files import write_safetensors

_Files = Mapping[str, Callable[[Path], object]]  # name -> a function that writes the file


def load_model(
    source: str | Path, *, n_heads: int | None = None, entry: str | None = None
) -> tuple[GPTModel, dict[str, Any]]:
    """Read a model.

    Args:
        source: one of

            - a folder, native or Hugging Face's: `config.json` and `model.safetensors`, its shards,
              `pytorch_model.bin` or `flax_model.msgpack`; or that file of weights;
            - a course checkpoint or nanoGPT's `ckpt.pt`: `.pth` or `.pt`, which need torch and
              whose code is not run, or `.safetensors`;
            - "tiny", the model that the package ships;
            - "gpt2", "gpt2-medium", "gpt2-large" or "gpt2-xl", fetched from the Hugging Face hub
              (a local folder of that name is "./gpt2");
            - "torch-seed:N[:PRESET]", the weights that PyTorch draws after `torch.manual_seed(N)`,
              made without PyTorch (presets: 124M, the default, gpt2, gpt2-medium, ...).
        n_heads: the number of attention heads, if the source does not record it.
        entry: the entry of a PyTorch checkpoint that is the model, such as "ema", if there are
            several; "a.b" is the entry "b" of the entry "a".

    Returns:
        The model and its parameters: `model.apply({"params": params}, ids)`.

    Note:
        float32 tensors of a `.safetensors` file are mapped into memory, not read. If that file is
        truncated or rewritten in place, the operating system ends this process (SIGBUS) when it
        reads a missing page. Replace the file by renaming a new one, as `save_model` and
        `obscura convert` do.

    Raises:
        FileNotFoundError: if there is nothing at `source`.
        ValueError: if it is damaged, not a model, or not completely understood.
    """
    loaded = read_checkpoint(source, n_heads=n_heads, entry=entry)
    return GPTModel(loaded.cfg), loaded.params


def read_checkpoint(
    source: str | Path, *, n_heads: int | None = None, entry: str | None = None
) -> LoadedModel:
    """Read a model together with its dialect, audit and tokens; see `load_model`."""
    if n_heads is not None:
        check_size("n_heads", n_heads)
    if str(source).startswith("torch-seed:"):
        check_no_entry(source, entry)
        return build_from_seed(str(source), n_heads)
    weights = read_weights(resolve_weights(source), entry)
    config_hints = weights.config_hints
    try:
        if n_heads is not None and config_hints.setdefault("n_heads", n_heads) != n_heads:
            raise ValueError(f"it has n_heads={config_hints['n_heads']}, not {n_heads}")
        loaded = build(weights.tensors, config_hints, allow_alias=True)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    is_native = weights.is_native and loaded.dialect == "course"
    dialect = "native" if is_native else loaded.dialect
    return replace(loaded, dialect=dialect, tokens=weights.tokens)


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
    mapped an earlier `model.safetensors` keeps its bytes. Files of an earlier model that would be
    read with this one, such as its tokenizer, are removed; other files stay.

    Args:
        folder: the folder, which is created if it is missing.
        cfg: the model's config.
        params: its parameters.
        tokens: its special tokens and the files of its tokenizer, such as
            `read_checkpoint(source).tokens`. By default none are recorded.
        overwrite: whether to replace a model in the folder, as by default. The commands of
            `obscura` replace one with `--overwrite` only.

    Raises:
        ValueError: if `params` are not the parameters of `GPTModel(cfg)`, or if `folder` is a file,
            cannot be written, or has a model that `overwrite` protects.
    """
    cfg = GPTConfig.of(cfg)
    tensors = named_tensors(cfg, params)
    record = tokens.to_dict()
    files = {**copies(tokens), **({TOKENS_FILE: _json(record)} if record else {})}
    files |= _model_files(tensors, {"format": FORMAT, **cfg.to_dict()})
    _write_folder(folder, files, overwrite)


def save_hf(
    folder: str | Path,
    cfg: GPTConfig | Mapping[str, Any],
    params: Any,
    *,
    tokens: TokenRecord = NO_TOKENS,
    overwrite: bool = True,
) -> None:
    """Write the folder that transformers' `GPT2LMHeadModel.from_pretrained` loads.

    The arguments and errors are those of `save_model`. Special tokens that `tokens` lacks are null.
    """
    cfg = GPTConfig.of(cfg)
    tensors = to_dialect(HUGGING_FACE, cfg, named_tensors(cfg, params))
    config = to_hf_config(cfg, tokens.to_dict())
    _write_folder(folder, {**copies(tokens), **_model_files(tensors, config)}, overwrite)


def save_course(
    path: str | Path,
    cfg: GPTConfig | Mapping[str, Any],
    params: Any,
    *,
    overwrite: bool = True,
) -> None:
    """Write a file that the course's `GPTModel(cfg).load_state_dict(..., strict=True)` accepts.

    Raises:
        ValueError: if `params` are not the parameters of `GPTModel(cfg)`, `cfg.ln_eps` is not the
            course's 1e-5, torch is missing, or `path` is a folder, does not end in .pth, .pt or
            .safetensors, cannot be written, or is a file that `overwrite` protects.
    """
    tensors = to_course(GPTConfig.of(cfg), params)
    path = _check_file(path, "a course checkpoint", (".pth", ".pt", SAFETENSORS_SUFFIX), overwrite)
    if path.suffix.lower() == SAFETENSORS_SUFFIX:
        write_atomically(path, {path: partial(write_safetensors, tensors=tensors)})
    else:
        write_atomically(path, {path: partial(write_torch, tensors)})


def save_nanogpt(
    path: str | Path,
    cfg: GPTConfig | Mapping[str, Any],
    params: Any,
    *,
    tokens: TokenRecord = NO_TOKENS,
    overwrite: bool = True,
) -> None:
    """Write a `ckpt.pt` with `model`, `model_args` and `config`, as nanoGPT's training does.

    The ids of `tokens` are recorded in `config`, but not the files of a tokenizer.

    Raises:
        ValueError: if `params` are not the parameters of `GPTModel(cfg)`, the output head is not
            the token table, to which nanoGPT always ties it, `cfg.ln_eps` is not nanoGPT's 1e-5,
            torch is missing, or `path` is a folder, does not end in .pt or .pth, cannot be written,
            or is a file that `overwrite` protects.
    """
    cfg = GPTConfig.of(cfg)
    native, extra_entries = named_tensors(cfg, params), to_model_args(cfg, tokens.to_dict())
    if not cfg.tie_weights and not np.array_equal(
        native["out_head.weight"], native["tok_emb.weight"]
    ):
        raise ValueError(
            "nanoGPT's output head is its token table, but this model has a head of its own; use "
            "--to hf"
        )
    tensors = to_dialect(NANOGPT, cfg, native)
    path = _check_file(path, "a nanoGPT checkpoint", (".pt", ".pth"), overwrite)
    write = partial(write_torch, tensors, extra_entries=extra_entries)
    write_atomically(path, {path: write})


def _model_files(tensors: Tensors, config: Mapping[str, Any]) -> _Files:
    return {WEIGHTS: partial(write_safetensors, tensors=tensors), CONFIG: _json(config)}


def _json(entries: Mapping[str, Any]) -> Callable[[Path], object]:
    text = json.dumps(entries, indent=2) + "\n"
    return lambda path: path.write_text(text, encoding="utf-8")


def _write_folder(folder: str | Path, files: _Files, overwrite: bool) -> None:
    path = require_path(folder)
    if path.suffix.lower() in (*TORCH_SUFFIXES, SAFETENSORS_SUFFIX) and not os.path.isdir(path):
        raise ValueError(
            f"{folder} is the name of a file, but this form is a folder; name a folder, or write a "
            "course checkpoint (--to course)"
        )
    if os.path.exists(path) and not os.path.isdir(path):
        raise ValueError(f"{folder} is a file, but this form is a folder; name a folder")
    check_free(path, overwrite)
    write_atomically(path, {path / name: write for name, write in files.items()})
    remove_companions(path, files)


def _check_file(path: str | Path, what: str, suffixes: tuple[str, ...], overwrite: bool) -> Path:
    path = require_path(path)
    if os.path.isdir(path):
        raise ValueError(f"{path} is a folder, but {what} is a file; name a file")
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{path} must end in {' or '.join(suffixes)} to be {what}")
    check_free(path, overwrite)
    return path
