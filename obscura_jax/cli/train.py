"""`obscura train`: a model from text files."""

import argparse
import shlex
import sys
import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from obscura_jax.arguments import seed, size
from obscura_jax.cli.suggestions import generate_command
from obscura_jax.cli.training_display import Display, say
from obscura_jax.config import GENERATOR, PRESETS
from obscura_jax.interrupts import deferred
from obscura_jax.runs.folder import delete_partial_run, owned, remember, settle
from obscura_jax.runs.prepare import SIZES, STEPS, prepare

# What a run is, and --resume finds again. The other options may differ from call to call.
_DEFAULTS = {
    "text": None,
    "data": None,
    "preset": None,
    "vocab_size": 50257,
    "emb_dim": 128,
    "n_heads": 4,
    "n_layers": 4,
    "context_length": 128,
    "drop_rate": 0.0,
    "steps": None,
    "epochs": None,
    "stride": None,
    "batch_size": 16,
    "accumulate": 1,
    "lr": 1e-3,
    "warmup_steps": 50,
    "end_lr_fraction": 0.1,
    "weight_decay": 0.1,
    "beta2": 0.99,
    "clip_norm": 1.0,
    "held_out": 0.1,
    "seed": 0,
    "dtype": "float32",
    "chunk": None,
    "recompute": None,
}
_DTYPES = ("float32", "bfloat16")
_RECOMPUTE = ("elementwise", "blocks")
# A function that reads a value, as for the command line, or all values.
_KINDS: dict[str, Any] = {
    **{name: float if isinstance(value, float) else size for name, value in _DEFAULTS.items()},
    "text": list,
    "data": str,
    "preset": tuple(PRESETS),
    "seed": seed,
    "dtype": _DTYPES,
    "recompute": _RECOMPUTE,
}
_SAMPLE_TOKENS = 32


def add_parser(commands: Any) -> None:
    """Declare the command's words."""
    parser = commands.add_parser("train", help="train a model on text")

    def add(name: str, metavar: str | None = None, help: str = "", **how: Any) -> None:
        default = _DEFAULTS.get(name[2:].replace("-", "_"))
        known = "" if default is None else f"default: {default}"
        help = "; ".join(part for part in (help, known) if part)
        if metavar:
            how["metavar"] = metavar
        parser.add_argument(name, help=help, **how)

    add("--text", "FILE", "UTF-8 text; without it standard input is read", nargs="+")
    add("--data", "DIR", "token files train.bin and val.bin, as nanoGPT makes them, for text")
    add("--out", "DIR", "a new folder for checkpoints, metrics and model", required=True)
    add("--resume", help="go on with the training in DIR, as it was begun", action="store_true")
    add("--preset", help="sizes of a known model, in place of the next five", choices=PRESETS)
    add("--vocab-size", "V", "GPT-2's first V - 1 tokens and <|endoftext|>", type=size)
    add("--emb-dim", "D", type=size)
    add("--n-heads", "H", type=size)
    add("--n-layers", "N", type=size)
    add("--context-length", "T", type=size)
    add("--drop-rate", "R", type=float)
    add("--steps", "N", f"default: {STEPS}", type=size)
    add("--epochs", "N", "passes over the text, in place of --steps", type=size)
    add("--max-seconds", "S", "end after this time as if it were the last step", type=float)
    add("--stride", "N", "tokens from window to window; default: T", type=size)
    add("--batch-size", "B", "windows a step", type=size)
    add("--accumulate", "A", "parts a batch is read in", type=size)
    add("--lr", "X", "largest learning rate", type=float)
    add("--warmup-steps", "N", type=size)
    add("--final-fraction", "F", "of the learning rate", type=float, dest="end_lr_fraction")
    add("--weight-decay", "X", "of matrices", type=float)
    add("--beta2", "X", "how much of the mean squared gradient is kept", type=float)
    add("--clip-norm", "X", "of gradients", type=float)
    add("--held-out", "F", "part of the text, its end, to validate on", type=float)
    add("--validate-every", "N", "steps; default: 100", type=size, default=100)
    add("--save-every", "K", "steps; default: 100", type=size, default=100)
    add("--keep", "N", "checkpoints; default: 2", type=size, default=2)
    add("--seed", "S", "of weights, order, dropout", type=seed)
    add("--dtype", help="compute in it", choices=_DTYPES)
    add("--chunk", "N", "positions that have logits at once, for less memory", type=size)
    add("--recompute", help="rather than keep it, for less memory", choices=_RECOMPUTE)
    add("--scan", help="compile one block, for a deep model", action="store_true")
    add("--mesh", "SIZES", "split over all devices, such as data=4,fsdp=1,model=2")
    add("--coordinator", "HOST:PORT", "of many processes, where process 0 runs")
    add("--processes", "N", "how many there are", type=size)
    add("--process-id", "I", "which one this is, from 0", type=seed)
    add("--join-timeout", "S", "to wait for all of them; default: 60", type=size, default=60)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Train in the folder, and write the native model at the end."""
    given = {n: v for n in _DEFAULTS if (v := getattr(args, n)) is not None}
    if given.get("text"):
        given["text"] = [str(Path(path).absolute()) for path in given["text"]]
    if given.get("data"):
        given["data"] = str(Path(given["data"]).absolute())
    alternatives = [("text", "data"), ("steps", "epochs"), *(("preset", size) for size in SIZES)]
    for one, other in alternatives:
        if one in given and other in given:
            other = other.replace("_", "-")
            raise ValueError(f"--{one} and --{other} cannot both be given")
    if args.max_seconds is not None and not args.max_seconds > 0:
        raise ValueError(f"--max-seconds must be above 0, got {args.max_seconds}")
    many = {args.coordinator, args.processes, args.process_id} != {None}
    if many and None in (args.coordinator, args.processes, args.process_id):
        raise ValueError("--coordinator, --processes and --process-id belong together")
    with _joined(args) if many else nullcontext(), warnings.catch_warnings():
        warnings.showwarning = _warn
        if args.process_id:
            warnings.simplefilter("ignore")  # process 0 tells of it
            _follow(args)
            return
        with owned(args.out) as folder:
            settings = settle(folder, given, _DEFAULTS, _KINDS, args.resume)
            with nullcontext() if args.resume else delete_partial_run(folder):
                prepared = _prepared(args, folder, settings)
                if args.resume:
                    remember(folder, settings)  # the new ones, for other processes and next time
                if many:
                    _meet("prepared")
                _train(args, folder, settings, *prepared)


def _joined(args: argparse.Namespace) -> AbstractContextManager[None]:
    from obscura_jax.scale.processes import joined

    same = ("mesh", "scan", "validate_every", "save_every", "max_seconds")
    options = {f"--{name.replace('_', '-')}": getattr(args, name) for name in same}
    return joined(
        args.coordinator,
        args.processes,
        args.process_id,
        timeout=args.join_timeout,
        options=options,
        complain=_warn,
    )


def _follow(args: argparse.Namespace) -> None:
    """Take part in the training of process 0, with the settings that it has written."""
    _meet("prepared")
    folder = Path(args.out)
    settings = settle(folder, {}, _DEFAULTS, _KINDS, resume=True)
    _train(args, folder, settings, *_prepared(args, folder, settings))


def _meet(where: str) -> None:
    from jax.experimental.multihost_utils import sync_global_devices

    sync_global_devices(where)


def _spread(args: argparse.Namespace) -> bool:
    """Whether the state lies over a mesh; in many processes always."""
    return args.mesh is not None or args.coordinator is not None


def _prepared(
    args: argparse.Namespace, folder: Path, settings: dict[str, Any]
) -> tuple[Any, Any, Any]:
    """The run, the batches it is validated on, and where its state is to lie."""
    if not _spread(args):
        from obscura_jax.training.placement import SingleDevice

        return *prepare(folder, settings, None), SingleDevice(scan=args.scan)
    import jax

    from obscura_jax.scale.mesh import make_mesh, parse_mesh
    from obscura_jax.scale.placement import MeshPlacement

    mesh = make_mesh(parse_mesh(args.mesh) if args.mesh else {"data": jax.device_count()})
    run, validation = prepare(folder, settings, mesh)
    writes = not args.process_id
    return (
        run,
        validation,
        MeshPlacement(mesh, run.model.cfg, scan=args.scan, is_writer=writes),
    )


def _train(
    args: argparse.Namespace,
    folder: Path,
    settings: dict[str, Any],
    run: Any,
    validation: Any,
    placement: Any,
) -> None:
    import jax

    from obscura_jax.interop.checkpoint import save_model
    from obscura_jax.interop.tokens import NO_TOKENS, gpt2_record
    from obscura_jax.runs.fit import METRICS, Callbacks, Schedule, fit
    from obscura_jax.training.initial import gpt2_init
    from obscura_jax.training.loop import DivergedError

    cfg, key = run.model.cfg, jax.random.key(settings["seed"], impl=GENERATOR)
    try:
        quiet = nullcontext(lambda row: None)
        with deferred() as stop, Display(run.steps) if placement.is_writer else quiet as show:
            state = fit(
                run,
                folder,
                lambda: gpt2_init(cfg, key),
                validation,
                Schedule(args.validate_every, args.save_every, args.keep, args.max_seconds),
                Callbacks(show, stop, None if _spread(args) else _sampler(run.model, key)),
                placement,
            )
            stopped_by = placement.max_over_processes(stop())
    except DivergedError:
        if placement.is_writer:
            _draw(folder / METRICS, folder / "loss.png")
        raise
    if placement.is_writer:
        _draw(folder / METRICS, folder / "loss.png")
    if number := stopped_by:
        if placement.is_writer:
            again = f"obscura train --out {shlex.quote(args.out)} --resume"
            say(f"saved after step {int(state.step)}: {again}", sys.stdout)
        sys.exit(128 + number)
    if not placement.is_writer:
        return
    # The tokenizer of token files is unknown here.
    tokens = NO_TOKENS if settings["data"] else gpt2_record(cfg)
    save_model(folder / "model", cfg, state.params, tokens=tokens)
    say(generate_command(folder / "model", cfg), sys.stdout)


def _sampler(model: Any, key: Any) -> Any:
    """Return a function from parameters to text they generate, to show with a validation loss.

    Return None for a model without a text tokenizer, or without room for a second token. The text
    is only shown, so an error in it is reported and does not end the run.
    """
    from obscura_jax.decoding.generate import generate
    from obscura_jax.decoding.text import decode_until_stop
    from obscura_jax.text.tokenizers import LEAST_TOKENS, tokenizer_for

    cfg = model.cfg
    count = min(_SAMPLE_TOKENS, cfg.context_length - 1)
    if cfg.vocab_size < LEAST_TOKENS or count == 0:
        return None
    tokenizer = tokenizer_for(cfg.vocab_size)
    start = [[tokenizer.eot_token]]

    def sample(params: Any) -> str:
        try:
            out = generate(model, params, start, count, temperature=0.8, key=key)
            return decode_until_stop(tokenizer, out.tokens[0])[0]
        except Exception as error:
            _warn(f"no sample of text: {error}")
            return ""

    return sample


def _draw(metrics: Path, picture: Path) -> None:
    """Draw the loss curves, if matplotlib is installed; no error in this ends a run."""
    from obscura_jax.plots import loss_curves
    from obscura_jax.runs.fit import read_metrics

    try:
        if rows := read_metrics(metrics):
            loss_curves(rows).savefig(picture, dpi=120)
    except Exception as error:
        _warn(f"no {picture.name}: {error}")


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    say(f"obscura train: {message}", sys.stderr)
