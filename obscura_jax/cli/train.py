"""`obscura train`: train a model on text, in a folder from which the run can be resumed."""

import argparse
import shlex
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

from obscura_jax.arguments import add_hidden_alias, nonnegative_int, positive_int
from obscura_jax.cli.suggestions import generate_command
from obscura_jax.interrupts import deferred
from obscura_jax.runs.display import Display, print_line, show_tokenizing
from obscura_jax.runs.settings import DEFAULT_SIZES, TrainSettings, setting_of


def add_parser(commands: Any) -> None:
    """Declare the command's options."""
    parser = commands.add_parser("train", help="train a model on text")
    groups: dict[str, Any] = {}
    for f in fields(TrainSettings):
        setting = setting_of(f.name)
        if setting.group not in groups:
            groups[setting.group] = parser.add_argument_group(setting.group)
        group = groups[setting.group]
        action = _add(
            group,
            _option(f.name),
            setting.help,
            default=DEFAULT_SIZES.get(f.name, f.default),
            type=setting.kind.parse,
            choices=setting.kind.choices,
            metavar=setting.metavar,
            nargs="+" if f.name == "text" else None,
        )
        action.default = None  # to tell the options that were given
        if setting.old:
            add_hidden_alias(group, _option(setting.old), action)

    _add(groups["memory"], "--scan", "compile one block and run it in a loop", action="store_true")

    group = parser.add_argument_group("devices")
    _add(group, "--mesh", "mesh over all devices, such as data=4,fsdp=1,model=2", metavar="SIZES")
    _add(group, "--coordinator", "address of process 0 of several processes", metavar="HOST:PORT")
    _add(group, "--processes", "number of processes", metavar="N", type=positive_int)
    _add(group, "--process-id", "number of this process", metavar="I", type=nonnegative_int)
    seconds: Any = {"metavar": "S", "type": positive_int, "default": 60}
    _add(group, "--join-timeout", "seconds to wait until all processes have joined", **seconds)

    group = parser.add_argument_group("run folder")
    _add(group, "--out", "folder for checkpoints, metrics and model", metavar="DIR", required=True)
    _add(group, "--resume", "continue the run in the folder", action="store_true")
    _add(group, "--max-seconds", "time after which the run ends", metavar="S", type=float)
    steps: Any = {"metavar": "N", "type": positive_int}
    _add(group, "--validate-every", "steps between validations", default=100, **steps)
    _add(group, "--save-every", "steps between checkpoints", default=100, **steps)
    kept = _add(group, "--max-checkpoints", "number of checkpoints to keep", default=2, **steps)
    add_hidden_alias(group, "--keep", kept)
    parser.set_defaults(run=run)


def _add(group: Any, name: str, help: str, *, default: Any = None, **how: Any) -> Any:
    """Add an option whose help gives its default, and return the argparse action."""
    if default is not None:
        help = f"{help}; default: {default}"
    return group.add_argument(name, help=help, default=default, **how)


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def run(args: argparse.Namespace) -> None:
    """Train, then print a command that runs the model, or one that resumes the run."""
    from obscura_jax.runs.fit import Schedule
    from obscura_jax.runs.launch import Launch, launch
    from obscura_jax.runs.prepare import TextSource

    how = Launch(
        resume=args.resume,
        schedule=Schedule(
            args.validate_every, args.save_every, args.max_checkpoints, args.max_seconds
        ),
        mesh=args.mesh,
        scan=args.scan,
        source=TextSource(getattr(sys.stdin, "buffer", None), show_tokenizing),
        watch=_watch,
        warn=_warn,
    )
    with _session(args), warnings.catch_warnings():
        warnings.showwarning = _warn
        result = launch(given_settings(args), args.out, how)
        if _is_first_process():
            resume = f"obscura train --out {shlex.quote(args.out)} --resume"
            if result.stopped_by:
                print_line(f"saved after step {result.steps}: {resume}", sys.stdout)
            else:
                print_line(generate_command(Path(args.out, "model"), result.model.cfg), sys.stdout)
        if result.stopped_by:
            sys.exit(128 + result.stopped_by)


def given_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that were given as options."""
    values = {f.name: getattr(args, f.name) for f in fields(TrainSettings)}
    return {name: value for name, value in values.items() if value is not None}


def _session(args: argparse.Namespace) -> AbstractContextManager[None]:
    """Return a context manager that joins all processes, or does nothing if there is only one."""
    how = (args.coordinator, args.processes, args.process_id)
    if how == (None, None, None):
        return nullcontext()
    if None in how:
        raise ValueError("--coordinator, --processes and --process-id belong together; give all")
    from obscura_jax.scale.processes import joined

    equal = ("mesh", "scan", "validate_every", "save_every", "max_seconds")
    options = {_option(name): getattr(args, name) for name in equal}
    return joined(*how, timeout=args.join_timeout, options=options, complain=_warn)


@contextmanager
def _watch(steps: int) -> Iterator[Any]:
    """Context manager: show the metrics, and let a signal stop the run after the current step."""
    from obscura_jax.runs.fit import Callbacks

    with (
        deferred() as should_stop,
        Display(steps) if _is_first_process() else nullcontext() as show,
    ):
        yield Callbacks(on_metrics=show or (lambda row: None), should_stop=should_stop)


def _is_first_process() -> bool:
    import jax

    return jax.process_index() == 0


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    print_line(f"obscura train: {message}", sys.stderr)
