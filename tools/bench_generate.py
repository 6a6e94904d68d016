"""Generation compared with other programs, with the same weights and threads, in turn.

    python tools/bench_generate.py

The peers are transformers (float32 and bfloat16) and CTranslate2 (float32), if they are installed
(`pip install -e '.[bench]'`). Every system has its own process. Each round times all of them once,
one after the other; a ratio is the median over the rounds, above 1 if obscura_jax is faster.
"""

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from obscura_jax.bench.arguments import add_arguments
from obscura_jax.bench.generation import (
    GenerateFn,
    generate_functions,
    generation_workloads,
    time_generation,
)
from obscura_jax.bench.measurements import BenchReport, environment
from obscura_jax.bench.processes import can_cold_start, cold_start_command, time_cold_start

sys.path.insert(0, str(Path(__file__).parents[1]))

from docs.hooks.data_files import DATA, add_save_option, save, saved_command
from tools.side_by_side import Elsewhere, data_rows, ratios, show

_TRANSFORMERS_PROCESS = """
import sys, torch
from transformers import GPT2LMHeadModel
torch.set_num_threads(int(sys.argv[2]))
model = GPT2LMHeadModel.from_pretrained(sys.argv[1]).eval()
ids = torch.tensor([[15496, 11, 314, 716]])
with torch.no_grad():
    model.generate(ids, max_new_tokens=64, min_new_tokens=64, do_sample=False)
"""


def main() -> None:
    """Time everything, and print measurements and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    add_save_option(parser)
    args = parser.parse_args()
    command = saved_command(parser, args.save)
    if args.save == DATA and not (find_spec("transformers") and find_spec("ctranslate2")):
        parser.error("docs/data has figures of all peers; pip install -e '.[bench]'")
    os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}

    import jax

    from obscura_jax.interop.checkpoint import load_model, save_hf, save_model

    model, params = load_model(args.model, n_heads=args.n_heads)
    threads = environment()["threads"]
    report, found = BenchReport(args.json), []
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as processes:
        params = jax.device_get(params)
        save_model(f"{folder}/native", model.cfg, params)
        save_hf(f"{folder}/hf", model.cfg, params)
        makers = _makers(model.cfg.vocab_size, folder, int(threads), args.dtype)
        systems: dict[str, GenerateFn] = {
            name: processes.enter_context(Elsewhere(*make)) for name, make in makers
        }
        _check_same_model(systems)
        for workload in generation_workloads(model.cfg):
            figures = time_generation(workload, systems, args.repeats)
            report.add(*figures)
            found += ratios(figures)
        processes.close()
        if not args.no_cold and can_cold_start(model.cfg):
            commands = {"float32": cold_start_command(f"{folder}/native")}
            if "transformers float32" in systems:
                script = [sys.executable, "-c", _TRANSFORMERS_PROCESS, f"{folder}/hf", threads]
                commands["transformers float32"] = script
            figures = time_cold_start(commands, args.repeats)
            report.add(*figures)
            found += ratios(figures)
    report.end(args.model, ratios=found)
    if not args.json:
        show(found)
    if args.save:
        peers = [name for name in ("transformers", "torch", "ctranslate2") if find_spec(name)]
        rows = data_rows(report.measurements, found)
        path = args.save / "generation.json"
        save(path, rows, command=command, packages=peers)


def _check_same_model(systems: dict[str, GenerateFn]) -> None:
    """Raise ValueError unless the float32 systems generate the same greedy tokens."""
    prompts = [[5, 17, 42], [250, 3, 8]]
    made = {n: system(prompts, 8)[2] for n, system in systems.items() if "float32" in n}
    if any(tokens != next(iter(made.values())) for tokens in made.values()):
        raise ValueError(f"the systems do not run the same model: {made}")


def _makers(
    vocab_size: int, folder: str, threads: int, dtype: str | None
) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Yield each system's name, and the function and arguments that load it from `folder`."""
    dtypes = [dtype] if dtype else ["float32", "bfloat16"]
    for each in dtypes:
        yield each, (_ours, folder, each)
    missing = [name for name in ("transformers", "ctranslate2") if not find_spec(name)]
    if missing:
        print(f"not installed: {', '.join(missing)} (pip install -e '.[bench]')", file=sys.stderr)
    if "transformers" in missing:
        return
    for each in dtypes:
        yield f"transformers {each}", (_transformers, folder, each, threads)
    if "ctranslate2" not in missing and "float32" in dtypes:
        yield "CTranslate2 float32", (_ctranslate2, folder, vocab_size, threads)


def _ours(folder: str, dtype: str) -> GenerateFn:
    from obscura_jax.interop.checkpoint import load_model

    return generate_functions(*load_model(f"{folder}/native"), dtype)[dtype]


def _transformers(folder: str, dtype: str, threads: int) -> GenerateFn:
    import torch
    from transformers import GPT2LMHeadModel

    torch.set_num_threads(threads)
    model = GPT2LMHeadModel.from_pretrained(f"{folder}/hf", dtype=getattr(torch, dtype)).eval()

    def call(prompts: list[list[int]], new_tokens: int) -> tuple[float, float, list[list[int]]]:
        ids = torch.tensor(prompts)
        whole = {"attention_mask": torch.ones_like(ids), "do_sample": False, "pad_token_id": 0}
        with torch.no_grad():
            first, out = _timed(model.generate, ids, max_new_tokens=1, **whole)
            both = first
            if new_tokens > 1:
                both, out = _timed(model.generate, ids, max_new_tokens=new_tokens, **whole)
        return first, both - first, out[:, ids.shape[1] :].tolist()

    return call


def _ctranslate2(folder: str, vocab_size: int, threads: int) -> GenerateFn:
    import ctranslate2

    class Converter(ctranslate2.converters.TransformersConverter):  # type: ignore[misc,unused-ignore]
        """A converter that needs no tokenizer files: token n is named "n"."""

        def load_tokenizer(self, *_: Any, **__: Any) -> Any:
            class Tokenizer:
                bos_token = eos_token = unk_token = "0"

                def get_vocab(self) -> dict[str, int]:
                    return {str(n): n for n in range(vocab_size)}

            return Tokenizer()

    Converter(f"{folder}/hf").convert(f"{folder}/ct2", quantization="float32")
    generator = ctranslate2.Generator(
        f"{folder}/ct2", device="cpu", inter_threads=1, intra_threads=threads
    )

    def call(prompts: list[list[int]], new_tokens: int) -> tuple[float, float, list[list[int]]]:
        words = [[str(n) for n in prompt] for prompt in prompts]

        def run(length: int) -> tuple[float, Any]:
            lengths = {"max_length": length, "min_length": length, "end_token": []}
            return _timed(
                generator.generate_batch, words, include_prompt_in_result=False, **lengths
            )

        first, out = run(1)
        both = first
        if new_tokens > 1:
            both, out = run(new_tokens)
        return first, both - first, [row.sequences_ids[0] for row in out]

    return call


def _timed(function: Any, *args: Any, **kwargs: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function(*args, **kwargs)
    return time.perf_counter() - start, result


if __name__ == "__main__":
    main()
