"""`obscura train`: train a model on text, in a folder from which the run can be resumed."""

import argparse
import shlex
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from obscura_jax.arguments import (
    add_hidden_alias,
    add_option,
    nonnegative_int,
    option_name,
    positive_int,
)
from obscura_jax.cli.suggestions import generate_command
from obscura_jax.interrupts import deferred
from obscura_jax.runs.arguments import add_settings_arguments, given_settings
from obscura_jax.runs.display import Display, print_line, show_tokenizing
from obscura_jax.runs.folder import MODEL


def add_parser(commands: Any) -> None:
    """Declare the command's options."""
    parser = commands.add_parser("train", help="train a model on text")
    groups = add_settings_arguments(parser)
    scan = "compile one block and run it in a loop"
    add_option(groups["memory"], "--scan", scan, action="store_true")

    add = partial(add_option, parser.add_argument_group("devices"))
    add("--mesh", "mesh over all devices, such as data=4,fsdp=1,model=2", "SIZES")
    distributed = (
        "join the other processes of this job, which SLURM, Open MPI or a TPU pod describes; "
        "elsewhere, give the next three options, which imply this one"
    )
    add("--distributed", distributed, action="store_true")
    add("--coordinator", "address of process 0", "HOST:PORT")
    add("--processes", "number of processes", "N", positive_int)
    add("--process-id", "number of this process, from 0", "I", nonnegative_int)
    add("--join-timeout", "seconds to wait for all processes", "S", positive_int, default=60)

    group = parser.add_argument_group("run folder")
    add = partial(add_option, group)
    add("--out", "folder for checkpoints, metrics and model", "DIR", required=True)
    add("--resume", "continue the run in the folder", action="store_true")
    add("--max-seconds", "time after which the run ends", "S", float)
    add("--validate-every", "steps between validations", "N", positive_int, default=100)
    look = "steps between looks inside the model; look.html in the folder shows them"
    add("--look-every", look, "N", positive_int)
    add("--save-every", "steps between checkpoints", "N", positive_int, default=100)
    kept = add("--max-checkpoints", "number of checkpoints to keep", "N", positive_int, default=2)
    add_hidden_alias(group, "--keep", kept)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Train, then print a command that runs the model, or one that resumes the run."""
    import jax

    from obscura_jax.runs.fit import Schedule
    from obscura_jax.runs.launch import Launch, launch
    from obscura_jax.runs.prepare import TextSource

    kept = args.max_checkpoints
    every = args.validate_every, args.save_every
    schedule = Schedule(*every, kept, args.max_seconds, args.look_every)
    how = Launch(
        resume=args.resume,
        schedule=schedule,
        mesh=args.mesh,
        scan=args.scan,
        source=TextSource(getattr(sys.stdin, "buffer", None), show_tokenizing),
        watch=_watch,
        warn=_warn,
    )
    with _session(args), warnings.catch_warnings():
        warnings.showwarning = _warn
        result = launch(given_settings(args), args.out, how)
        if jax.process_index() == 0:
            resume = f"obscura train --out {shlex.quote(args.out)} --resume"
            line = f"saved after step {result.steps}: {resume}"
            if not result.stopped_by:
                line = generate_command(Path(args.out, MODEL), result.model.cfg)
            print_line(line, sys.stdout)
        if result.stopped_by:
            sys.exit(128 + result.stopped_by)


def _session(args: argparse.Namespace) -> AbstractContextManager[None]:
    """Return a context manager that joins all processes, or does nothing if there is only one."""
    process = (args.coordinator, args.processes, args.process_id)
    if not args.distributed and process == (None, None, None):
        return nullcontext()
    from obscura_jax.scale.processes import distributed_session

    equal = ("mesh", "scan", "validate_every", "save_every", "max_seconds")
    return distributed_session(
        *process,
        timeout=args.join_timeout,
        options={option_name(name): getattr(args, name) for name in equal},
        complain=_warn,
    )


@contextmanager
def _watch(steps: int) -> Iterator[Any]:
    """Context manager: show the metrics, and let a signal stop the run after the current step."""
    import jax

    from obscura_jax.runs.fit import Callbacks

    bar = nullcontext(lambda row: None) if jax.process_index() else Display(steps)
    with deferred() as should_stop, bar as show:
        yield Callbacks(show, should_stop)


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    print_line(f"obscura train: {message}", sys.stderr)
