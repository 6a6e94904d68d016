"""Decoding, prefill and training on a GPU compared with PyTorch on the same one, in turn.

    python tools/bench_gpu.py
    python tools/bench_gpu.py --no-torch --dtype float32
    python tools/bench_gpu.py --tiny

GPT-2 124M with random weights reads 512 tokens, decodes 256 steps of 1, 8 and 64 rows, and takes
training steps on 8 windows of 1024 tokens. The peer is transformers' GPT2LMHeadModel (`pip install
-e '.[bench]'`) with the same weights and fused attention, eager and compiled; it trains with fused
AdamW, in bfloat16 under autocast. Products in float32 use TF32 in both libraries. Every system has
its own process. Each round times all of them once, one after the other. The first call, which
compiles, is reported separately. With --tiny a small model does the same on JAX's default device.

Standard output is one JSON object:

    model, dtype       "gpt2" or "tiny", and the type to compute in
    device, threads, python, jax, flax, obscura_jax, torch, transformers
                       the GPU and the versions, as text; the last two are null with --no-torch
    figures            a list of {name, system, unit, values, median, compile_seconds, mebibytes};
                       system is the dtype (ours), "torch eager DTYPE" or "torch compiled DTYPE";
                       unit is "tokens/s" or, for decoding, "ms/step"; values has one number per
                       round; mebibytes is the peak of a training process's own memory, not the
                       GPU's, or null
    ratios             a list of {name, system, peer, ratio}: how many times as fast ours is as the
                       peer, as the median over the rounds

Standard error receives each measurement when it is complete, and at the end a table of the medians,
with each ratio after the peer's figure.
"""

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from obscura_jax.arguments import positive_int
from obscura_jax.bench.generation import GenerateFn, Workload, generate_functions, time_generation
from obscura_jax.bench.measurements import BenchReport, Measurement
from obscura_jax.bench.training import time_training, training_step
from obscura_jax.config import PRESETS, GPTConfig
from obscura_jax.extras import require
from obscura_jax.training.options import StepOptions

sys.path.insert(0, str(Path(__file__).parents[1]))

from tools.side_by_side import Elsewhere, ratios, table
from tools.torch_peers import transformers_generate, transformers_training_step

ROWS = (1, 8, 64)
TINY = GPTConfig(
    vocab_size=307,
    context_length=32,
    emb_dim=12,
    n_heads=3,
    n_layers=1,
    drop_rate=0.0,
    qkv_bias=True,
    tie_weights=True,
)


def main() -> None:
    """Time everything; print JSON, and a table on standard error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    dtypes = ("float32", "bfloat16")
    add("--dtype", choices=dtypes, default="bfloat16", help="compute dtype; default: bfloat16")
    add("--repeats", type=positive_int, default=5, metavar="N", help="rounds; default: 5")
    add("--batch-size", type=positive_int, default=8, metavar="B", help="windows; default: 8")
    add("--no-torch", action="store_true", help="leave out PyTorch")
    add("--eager", action="store_true", help="leave out torch.compile")
    add("--tiny", action="store_true", help="use a small model, on any device")
    args = parser.parse_args()
    try:
        bench(args)
    except EOFError:
        parser.exit(2, f"{parser.prog}: a timed process failed; see its error above\n")
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


def bench(args: argparse.Namespace) -> None:
    """Time every system, and print the report.

    Raises:
        ValueError: if there is no GPU, PyTorch is not installed or finds no GPU, or the systems
            do not run the same model.
        EOFError: if a process fails.
    """
    # The processes share the GPU; by default the first would take three quarters of its memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    device = choose_device(tiny=args.tiny, torch=not args.no_torch)
    cfg = TINY if args.tiny else replace(PRESETS["gpt2"], drop_rate=0.0)
    peers = {} if args.no_torch else {f"torch eager {args.dtype}": False}
    if peers and not args.eager:
        peers[f"torch compiled {args.dtype}"] = True
    with tempfile.TemporaryDirectory() as folder:
        _write_weights(folder, cfg)
        figures = _generation(cfg, folder, args, peers, device)
        figures += _training(cfg, folder, args, peers, device)
    names = dict.fromkeys(figure.name for figure in figures)
    found = [
        ratio for name in names for ratio in ratios([each for each in figures if each.name == name])
    ]
    print(f"\n{table(figures, found)}", file=sys.stderr)
    versions = {name: version(name) if peers else None for name in ("torch", "transformers")}
    report = BenchReport(as_json=True)
    report.add(*figures)
    report.end("tiny" if args.tiny else "gpt2", dtype=args.dtype, **versions, ratios=found)


def choose_device(*, tiny: bool, torch: bool) -> str:
    """Return PyTorch's name of the device to use, "cuda" or "cpu".

    Args:
        tiny: whether a CPU will do.
        torch: whether PyTorch runs too.

    Raises:
        ValueError: if JAX has no GPU and `tiny` is false, or PyTorch is missing or has no GPU.
    """
    import jax

    try:
        gpu = jax.default_backend() == "gpu"
    except (RuntimeError, AssertionError) as error:  # AssertionError: cuda without its plugin
        raise ValueError("JAX finds no device; unset JAX_PLATFORMS") from error
    if not gpu and not tiny:
        raise ValueError("JAX finds no GPU; install jax[cuda12], or use --tiny to try the tool")
    if torch:
        purpose = "comparing with PyTorch (leave it out with --no-torch)"
        require("transformers", "bench", purpose)
        if gpu and not require("torch", "torch", purpose).cuda.is_available():
            raise ValueError("PyTorch finds no GPU; install its CUDA build, or use --no-torch")
    return "cuda" if gpu else "cpu"


def workloads(cfg: GPTConfig) -> list[Workload]:
    """Return prefill of half the context, and decoding of each number of rows in `ROWS`."""
    context = cfg.context_length
    return [
        Workload(f"prefill, {context // 2} tokens", 1, context // 2, 1, "tokens/s"),
        *(
            Workload(f"decode, {rows} row{'s' * (rows > 1)}", rows, 8, context // 4 + 1, "ms/step")
            for rows in ROWS
        ),
    ]


def check_same_model(tokens: Mapping[str, Sequence[Sequence[int]]]) -> None:
    """Raise ValueError unless every system starts most rows with the first system's token.

    Args:
        tokens: the greedy tokens of the same rows by each system. Rounding may change a few.
    """
    first = [row[0] for row in next(iter(tokens.values()))]
    for system, rows in tokens.items():
        equal = sum(a == row[0] for a, row in zip(first, rows, strict=True))
        if 2 * equal <= len(first):
            raise ValueError(
                f"{system} does not run the same model: {equal} of {len(first)} rows have the same "
                "first token; do not compare its speed"
            )


def _write_weights(folder: str, cfg: GPTConfig) -> None:
    import jax

    from obscura_jax.interop.checkpoint import save_hf
    from obscura_jax.training.initial import gpt2_init

    save_hf(folder, cfg, jax.device_get(gpt2_init(cfg, jax.random.key(0))))


def _ours(folder: str, dtype: str) -> GenerateFn:
    from obscura_jax.interop.checkpoint import load_model

    return generate_functions(*load_model(folder), dtype)[dtype]


def _generation(
    cfg: GPTConfig, folder: str, args: argparse.Namespace, peers: Mapping[str, bool], device: str
) -> list[Measurement]:
    """Time prefill and decoding, and check that all systems run the same model."""
    figures, tokens = [], {}
    with contextlib.ExitStack() as processes:
        systems: dict[str, GenerateFn] = {
            args.dtype: processes.enter_context(Elsewhere(_ours, folder, args.dtype))
        }
        for name, compiled in peers.items():
            peer = Elsewhere(transformers_generate, folder, args.dtype, compiled, device)
            systems[name] = processes.enter_context(peer)

        def keep_tokens(name: str) -> GenerateFn:
            def call(
                prompts: list[list[int]], new_tokens: int
            ) -> tuple[float, float, list[list[int]]]:
                first, rest, tokens[name] = systems[name](prompts, new_tokens)
                return first, rest, tokens[name]

            return call

        kept = {name: keep_tokens(name) for name in systems}
        for workload in workloads(cfg):
            figures += _shown(time_generation(workload, kept, args.repeats))
            if workload.rows > 1:
                check_same_model(tokens)
    return figures


def _training(
    cfg: GPTConfig, folder: str, args: argparse.Namespace, peers: Mapping[str, bool], device: str
) -> list[Measurement]:
    """Time training steps on windows as long as the context."""
    shape = (args.batch_size, cfg.context_length)
    with contextlib.ExitStack() as processes:
        options = StepOptions(compute_dtype=args.dtype)
        ours = Elsewhere(training_step, cfg, *shape, options)
        steps = {args.dtype: processes.enter_context(ours)}
        for name, compiled in peers.items():
            settings = (folder, cfg, *shape, args.dtype, compiled, device)
            peer = Elsewhere(transformers_training_step, *settings)
            steps[name] = processes.enter_context(peer)
        name = f"training, {shape[0]} x {shape[1]}"
        return _shown(time_training(name, steps, shape[0] * shape[1], args.repeats))


def _shown(figures: list[Measurement]) -> list[Measurement]:
    """Print measurements on standard error as they arrive, and return them."""
    print(*figures, sep="\n", file=sys.stderr, flush=True)
    return figures


if __name__ == "__main__":
    main()
