"""From the settings of `obscura train` to the run they describe."""

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from obscura_jax.cli.training_display import show_reading
from obscura_jax.config import PRESETS, GPTConfig
from obscura_jax.runs.folder import SETTINGS, TOKENS, remember

SIZES = ("vocab_size", "context_length", "emb_dim", "n_heads", "n_layers")  # what a preset names
STEPS = 1000


def prepare(folder: Path, settings: dict[str, Any], mesh: Any) -> tuple[Any, Any]:
    """The run that the settings describe, and the batches it is validated on."""
    from obscura_jax.nn.model import GPTModel
    from obscura_jax.text.loader import DataLoader
    from obscura_jax.training.optimizer import OptimizerConfig
    from obscura_jax.training.options import StepOptions
    from obscura_jax.training.run import TrainRun

    model = GPTModel(_config(settings))
    config = OptimizerConfig(
        learning_rate=settings["lr"],
        end_lr_fraction=settings["end_lr_fraction"],
        weight_decay=settings["weight_decay"],
        decay_1d_params=False,
        beta2=settings["beta2"],
        clip_norm=settings["clip_norm"],
    )
    ids, held_out = _windows(folder, settings, model.cfg)
    size = settings["batch_size"]
    loader = DataLoader(ids, min(size, len(ids)), seed=settings["seed"])
    steps = settings["steps"] or len(loader) * (settings["epochs"] or 0) or STEPS
    warmup = min(settings["warmup_steps"], steps)
    run = TrainRun(
        model,
        replace(config, warmup_steps=warmup, decay_steps=steps - warmup),
        loader,
        steps,
        seed=settings["seed"],
        options=StepOptions(
            grad_accum_steps=settings["accumulate"],
            compute_dtype=settings["dtype"],
            logits_chunk=settings["chunk"],
            remat=settings["recompute"],
        ),
    )
    rows = min(size, len(held_out))
    if mesh is not None:
        from obscura_jax.scale.mesh import check_batch, largest_divisible_batch

        check_batch(
            loader.batch_size // run.options.grad_accum_steps, mesh, "a batch, or its part,"
        )
        rows = largest_divisible_batch(rows, mesh, "the held-out text")
    return run, DataLoader(held_out, rows, shuffle=False)


def _config(settings: Mapping[str, Any]) -> GPTConfig:
    if settings["preset"]:
        return replace(PRESETS[settings["preset"]], drop_rate=settings["drop_rate"])
    sizes = {name: settings[name] for name in (*SIZES, "drop_rate")}
    return GPTConfig(**sizes, qkv_bias=True, tie_weights=True)


def _windows(folder: Path, settings: Mapping[str, Any], cfg: GPTConfig) -> tuple[Any, Any]:
    """What is trained on and what is held out: of nanoGPT's files, or of the text."""
    from obscura_jax.text.corpus import finished_token_count, tokenize_to_file, train_token_count
    from obscura_jax.text.token_file import TokenFile

    def part(path: Path, first: int = 0, last: int | None = None) -> TokenFile:
        length, stride = cfg.context_length, settings["stride"] or cfg.context_length
        return TokenFile(path, length, stride, first=first, last=last, vocab_size=cfg.vocab_size)

    if not 0 < settings["held_out"] < 1:
        raise ValueError(f"--held-out must be in (0, 1), got {settings['held_out']}")
    resumed = (folder / SETTINGS).exists()
    if not resumed:
        remember(folder, settings)
    if settings["data"]:
        return part(Path(settings["data"], "train.bin")), part(Path(settings["data"], "val.bin"))
    path = folder / TOKENS
    count = finished_token_count(path)
    if count is None:
        texts = settings["text"]
        if not texts:
            if resumed or sys.stdin is None:
                raise ValueError("there is no text: give --text FILE, in a new folder")
            texts = sys.stdin.buffer
        count = tokenize_to_file(texts, path, vocab_size=cfg.vocab_size, progress=show_reading)
    at = train_token_count(count, settings["held_out"], cfg.context_length)
    return part(path, last=at), part(path, first=at)
