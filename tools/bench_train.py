"""Training steps compared with PyTorch's, eager and compiled, with the same shapes, in turn.

    python tools/bench_train.py
    python tools/bench_train.py --preset tiny --batch-size 32

PyTorch runs this project's own reference, obscura_jax/parity/gpt/torch_reference.py, with AdamW and
clip_grad_norm_; its bfloat16 steps run under autocast. Every system has its own process. Each round
runs two steps of every system, one system after the other, and times the second; a ratio is the
median over the rounds, above 1 if obscura_jax is faster. The first step, which compiles, is
reported separately. Memory is the peak of the process.
"""

import argparse
import contextlib
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from obscura_jax.arguments import positive_int
from obscura_jax.bench.measurements import BenchReport, environment
from obscura_jax.bench.training import TimedStep, time_training, token_batch, training_step
from obscura_jax.config import PRESETS
from obscura_jax.training.options import StepOptions

sys.path.insert(0, str(Path(__file__).parents[1]))

from docs.hooks.data_files import add_save_option, save, saved_command
from tools.side_by_side import Elsewhere, data_rows, ratios, show
from tools.torch_peers import torch_training_step


def main() -> None:
    """Time both number types, and print measurements and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--preset", choices=PRESETS, default="gpt2", help="default: gpt2 (124M)")
    add("--batch-size", type=positive_int, default=4, metavar="B", help="default: 4")
    add("--length", type=positive_int, default=256, metavar="T", help="default: 256")
    add(
        "--logits-chunk",
        type=positive_int,
        metavar="N",
        help="compute logits for N positions at a time (ours)",
    )
    add("--remat", choices=("elementwise", "blocks"), help="recompute to save memory (ours)")
    add("--dtype", choices=("float32", "bfloat16"), help="compute dtype; default: both, in turn")
    add("--eager", action="store_true", help="leave out torch.compile, which takes a minute")
    add("--repeats", type=positive_int, default=5, metavar="N", help="default: 5")
    add("--json", action="store_true", help="print one JSON object")
    add_save_option(parser)
    args = parser.parse_args()
    command = saved_command(parser, args.save)
    cfg, shape = PRESETS[args.preset], (args.batch_size, args.length)
    threads = int(environment()["threads"])
    report, found = BenchReport(args.json), []
    for dtype in [args.dtype] if args.dtype else ["float32", "bfloat16"]:
        options = StepOptions(compute_dtype=dtype, logits_chunk=args.logits_chunk, remat=args.remat)
        with contextlib.ExitStack() as processes:
            empty = processes.enter_context(tempfile.TemporaryDirectory())
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = empty  # so that the first step compiles
            makers: dict[str, tuple[Any, ...]] = {
                dtype: (training_step, cfg, *shape, options),
                f"torch eager {dtype}": (_torch, cfg, *shape, dtype, False, threads),
            }
            if not args.eager:
                makers[f"torch compiled {dtype}"] = (_torch, cfg, *shape, dtype, True, threads)
            steppers = {
                name: processes.enter_context(Elsewhere(*make)) for name, make in makers.items()
            }
            name = f"training, {shape[0]} x {shape[1]}"
            figures = time_training(name, steppers, shape[0] * shape[1], args.repeats)
        report.add(*figures)
        found += ratios(figures)
    report.end(args.preset, ratios=found)
    if not args.json:
        show(found)
    if args.save:
        tokens = {"tokens": shape[0] * shape[1]}
        rows = [{**row, **tokens} for row in data_rows(report.measurements, found)]
        path = args.save / "training.json"
        save(path, rows, command=command, packages=["torch"])


def _torch(cfg: Any, rows: int, length: int, dtype: str, compiled: bool, threads: int) -> TimedStep:
    import torch

    from obscura_jax.parity.gpt import torch_reference

    torch.set_num_threads(threads)
    model = torch_reference.GPTModel(cfg.to_dict())
    if cfg.tie_weights:
        model.out_head.weight = model.tok_emb.weight
    return torch_training_step(
        model, model, token_batch(cfg, rows, length), dtype, compiled=compiled
    )


if __name__ == "__main__":
    main()
