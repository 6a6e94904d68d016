"""`obscura train`: a model from text files."""

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from obscura_jax.cli.arguments import seed, size
from obscura_jax.config import PRESETS, GPTConfig


def add_to(commands: Any) -> None:
    """Declare the command's words."""
    parser = commands.add_parser("train", help="train a model on text")
    add = parser.add_argument
    add("--text", nargs="+", metavar="FILE", help="UTF-8 text; without it standard input is read")
    add("--out", required=True, metavar="DIR", help="a new folder for metrics and model")
    add("--preset", choices=PRESETS, help="sizes of a known model, in place of the next four")
    add("--emb-dim", type=size, default=128, metavar="D", help="default: 128")
    add("--n-heads", type=size, default=4, metavar="H", help="default: 4")
    add("--n-layers", type=size, default=4, metavar="N", help="default: 4")
    add("--context-length", type=size, default=128, metavar="T", help="default: 128")
    add("--drop-rate", type=float, default=0.0, metavar="R", help="default: 0")
    add("--steps", type=size, default=1000, metavar="N", help="default: 1000")
    add("--batch-size", type=size, default=16, metavar="B", help="windows a step; default: 16")
    add("--accumulate", type=size, default=1, metavar="A", help="parts a batch is read in")
    add("--lr", type=float, default=1e-3, metavar="X", help="largest learning rate; default: 1e-3")
    add("--warmup-steps", type=size, default=50, metavar="N", help="default: 50")
    add("--weight-decay", type=float, default=0.1, metavar="X", help="of matrices; default: 0.1")
    add("--clip-norm", type=float, default=1.0, metavar="X", help="of gradients; default: 1")
    add("--held-out", type=float, default=0.1, metavar="F", help="of the text; default: 0.1")
    add("--validate-every", type=size, default=100, metavar="N", help="steps; default: 100")
    add("--seed", type=seed, default=0, metavar="S", help="of weights, order, dropout; default: 0")
    add("--dtype", choices=("float32", "bfloat16"), help="compute in it; default: float32")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Read the text, train, and write the metrics as they come and the model at the end."""
    from obscura_jax.text.corpus import encode_texts, split_held_out

    cfg = _config(args)
    if not 0 < args.held_out < 1:
        raise ValueError(f"--held-out must be in (0, 1), got {args.held_out}")
    ids, held_out = split_held_out(encode_texts(_texts(args)), args.held_out, cfg.context_length)

    import jax

    from obscura_jax.interop.files import save_model
    from obscura_jax.nn.model import GPTModel
    from obscura_jax.text.dataset import GPTDatasetV1
    from obscura_jax.text.loader import DataLoader
    from obscura_jax.training.initial import gpt2_parameters
    from obscura_jax.training.loop import train, validation_loss
    from obscura_jax.training.optimizer import OptimizerConfig
    from obscura_jax.training.step import first_state

    config = OptimizerConfig(
        learning_rate=args.lr,
        warmup_steps=min(args.warmup_steps, args.steps),
        decay_steps=max(args.steps - args.warmup_steps, 0),
        weight_decay=args.weight_decay,
        decay_vectors=False,
        clip_norm=args.clip_norm,
    )

    def loader(ids: Any, batch_size: int, shuffle: bool) -> DataLoader:
        windows = GPTDatasetV1.from_ids(ids, cfg.context_length, cfg.context_length)
        size = min(batch_size, len(windows))
        return DataLoader(windows, size, shuffle, seed=args.seed)

    model = GPTModel(cfg)
    state = first_state(config, gpt2_parameters(cfg, jax.random.key(args.seed)))
    validation = loader(held_out, args.batch_size, shuffle=False)
    states = train(
        model,
        config,
        state,
        loader(ids, args.batch_size, shuffle=True),
        steps=args.steps,
        accumulate=args.accumulate,
        key=jax.random.fold_in(jax.random.key(args.seed), 1) if cfg.drop_rate else None,
        compute_dtype=args.dtype,
    )
    folder = _new_folder(args.out)
    with open(folder / "metrics.jsonl", "w", encoding="utf-8") as metrics:
        for state, row in states:
            rows = [row]
            if (row["step"] + 1) % args.validate_every == 0 or row["step"] + 1 == args.steps:
                rows.append(
                    {
                        "step": row["step"],
                        "val_loss": validation_loss(model, state.params, validation),
                    }
                )
            for each in rows:
                print(json.dumps(each), file=metrics, flush=True)
                _show(each)
    save_model(folder / "model", cfg, state.params)
    print(f"obscura generate --model {folder / 'model'} ...")


def _config(args: argparse.Namespace) -> GPTConfig:
    if args.preset:
        return replace(PRESETS[args.preset], drop_rate=args.drop_rate)
    return GPTConfig(
        vocab_size=50257,
        context_length=args.context_length,
        emb_dim=args.emb_dim,
        n_heads=args.n_heads,
        n_layers=args.n_layers,
        drop_rate=args.drop_rate,
        qkv_bias=True,
        tie_weights=True,
    )


def _texts(args: argparse.Namespace) -> list[str]:
    from obscura_jax.text.corpus import decode_text, read_text

    if args.text:
        return [read_text(path) for path in args.text]
    if sys.stdin is None:
        raise ValueError("there is no text: give --text FILE")
    return [decode_text(sys.stdin.buffer.read(), "standard input")]


def _new_folder(out: str) -> Path:
    """The folder to write to, which must hold no training yet."""
    folder = Path(out)
    if not out or (os.path.exists(folder) and not os.path.isdir(folder)):
        raise ValueError(f"{out!r} is not a folder")
    if (folder / "metrics.jsonl").exists() or (folder / "model").exists():
        raise ValueError(f"{out} holds a training already: name another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{out} cannot be written: {error.strerror or error}") from error
    return folder


def _show(row: dict[str, Any]) -> None:
    if "val_loss" in row:
        print(f"step {row['step'] + 1}: validation loss {row['val_loss']:.4f}", flush=True)
    elif (row["step"] + 1) % 10 == 0:
        print(
            f"step {row['step'] + 1}: loss {row['loss']:.4f}, "
            f"{row['tokens_per_second']:.0f} tokens/s",
            flush=True,
        )
