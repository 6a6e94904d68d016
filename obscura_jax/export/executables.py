"""Executables: the programs of an exported model, compiled for sizes that are common.

They serve one row with a prompt of at most 64 tokens, at most 128 tokens in all, and up to 16 stop
ids. A process that needs no other sizes compiles neither program. An executable contains machine
code: it runs only with the versions of JAX and jaxlib that compiled it, on a processor with the
same instruction sets, and should be loaded only from folders that are trusted.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable

from obscura_jax.compile_cache import disabled_compilation_cache
from obscura_jax.config import GPTConfig
from obscura_jax.decoding.cache import CacheLayout, bucket_length
from obscura_jax.export.build import Build, this_build
from obscura_jax.export.file_format import DONATED, PROGRAMS, Sizes, program_arguments

TARGETS = {"cpu": "cpu"}  # what executables can be compiled for -> its platform
_WIDTHS, _SLOTS = (16, 32, 64), 128

Executables = dict[str, dict[Sizes, Callable[[], Any]]]  # program -> sizes -> function that loads


def common_sizes(program: str, context: int) -> list[Sizes]:
    """Return the sizes that a program is compiled for, in a model of `context` positions."""
    slots, stop_ids = bucket_length(_SLOTS, context), bucket_length(0)
    widths = sorted({min(width, context) for width in _WIDTHS}) if program == "prefill" else [0]
    return [Sizes(1, width, slots, slots, stop_ids) for width in widths]


def compile_executables(
    target: str,
    exported: Mapping[str, Any],
    cfg: GPTConfig,
    weights: Mapping[str, Any],
    layout: CacheLayout,
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Compile the exported programs for the common sizes.

    Args:
        target: a key of `TARGETS`.
        exported: the two programs for the platform of `target`.
        cfg: the model's config.
        weights: its weights, or their shapes.
        layout: the layout of the cache in the file format.

    Returns:
        The target's entry in the manifest, and the contents of the files by name.

    Raises:
        ValueError: if this system does not describe its processor.
    """
    build = this_build()
    if not build.instructions:
        raise ValueError(
            "executables need /proc/cpuinfo, to record the processor; export on Linux, or leave "
            "out --compile"
        )
    files, sizes_of = {}, {}
    device = jax.devices(TARGETS[target])[0]
    with jax.default_device(device), disabled_compilation_cache():
        for program in PROGRAMS:
            call = jax.jit(exported[program].call, donate_argnums=DONATED[program])
            for sizes in common_sizes(program, cfg.context_length):
                compiled = call.lower(*program_arguments(program, weights, layout, sizes)).compile()
                name = f"{program}.{target}.{sizes.rows}x{sizes.width or sizes.slots}.executable"
                files[name], *_ = serialize_executable.serialize(compiled)
                sizes_of[name] = [program, *sizes]
    return {"platform": TARGETS[target], **build.to_dict(), "programs": sizes_of}, files


def find_executables(
    folder: Path,
    entries: Any,
    platform: str,
    read: Callable[[Path], bytes],
    weights: Mapping[str, Any],
    layout: CacheLayout,
) -> Executables:
    """Check and read the executables of a folder for a platform; load them when they are called.

    Args:
        folder: the folder.
        entries: "executables" of its manifest.
        platform: the platform of this process. Executables for others are ignored, and so are
            those whose files were removed.
        read: returns the checked contents of a file.
        weights: the weights, or their shapes.
        layout: the layout of the cache in the file format.

    Raises:
        ValueError: if they were compiled for other versions or another processor.
        KeyError, TypeError, AttributeError: for a damaged entry.
    """
    found: Executables = {program: {} for program in PROGRAMS}
    refusals = []
    for target, entry in entries.items():
        files = {folder / name: sizes for name, sizes in entry["programs"].items()}
        files = {path: sizes for path, sizes in files.items() if path.is_file()}
        if entry["platform"] != platform or not files:
            continue
        if reason := Build.from_dict(entry).difference(this_build()):
            refusals.append(
                f"{folder} has executables {reason}; export again with --compile {target}, or "
                f"remove {folder / f'*.{target}.executable'}"
            )
            continue
        for path, (program, *numbers) in files.items():
            sizes = Sizes(*numbers)
            arguments = program_arguments(program, weights, layout, sizes)
            state = arguments[DONATED[program]]
            found[program][sizes] = partial(_load, path, read(path), arguments, state)
        return found
    if refusals:
        raise ValueError(refusals[0])
    return found


def _load(path: Path, data: bytes, arguments: Any, result: Any) -> Any:
    """Return the executable in `data`, as a function of arrays of these shapes."""
    trees = jax.tree.structure((arguments, {})), jax.tree.structure(result)
    try:
        return serialize_executable.deserialize_and_load(
            data, *trees, execution_devices=jax.devices()[:1]
        )
    except Exception as error:  # its kind depends on the version of JAX
        raise ValueError(
            f"{path} cannot be loaded; export again with --compile, or remove it"
        ) from error
