"""Executables: the programs of an exported model, compiled for sizes that are common.

They serve one row with a prompt of at most 64 tokens, at most 128 tokens in all, and up to 16 stop
ids. A process that needs no other sizes compiles neither program. An executable contains machine
code: it runs only with the versions of JAX and jaxlib that compiled it, on a processor with the
same instruction sets, and should be loaded only from folders that are trusted.

An executable for a GPU is compiled without it, so XLA cannot choose kernels by timing them. It is
for GPUs of that kind, and also needs the version of JAX's CUDA plugin that compiled it. Only a
process with a GPU can load it; none was available, so that these executables were never run.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable
from jax.sharding import SingleDeviceSharding

from obscura_jax.compile_cache import disabled_compilation_cache
from obscura_jax.config import GPTConfig
from obscura_jax.decoding.cache import CacheLayout, bucket_length
from obscura_jax.decoding.graphs import decode_options
from obscura_jax.export.build import Build, build_for, this_build
from obscura_jax.export.file_format import DONATED, PROGRAMS, Sizes, program_arguments
from obscura_jax.scale.nvidia import GPUS, gpu_devices

# What executables can be compiled for -> its platform.
TARGETS = {"cpu": "cpu", **dict.fromkeys(GPUS, "cuda")}
_ROWS, _WIDTHS, _SLOTS = 1, (16, 32, 64), 128

Executables = dict[str, dict[Sizes, Callable[[], Any]]]  # program -> sizes -> function that loads


def common_sizes(program: str, context: int) -> list[Sizes]:
    """Return the sizes that a program is compiled for, in a model of `context` positions."""
    slots, stop_ids = bucket_length(_SLOTS, context), bucket_length(0)
    widths = sorted({min(width, context) for width in _WIDTHS}) if program == "prefill" else [0]
    return [Sizes(_ROWS, width, slots, slots, stop_ids) for width in widths]


def target_device(target: str) -> Any:
    """Return the device that executables for a key of `TARGETS` are compiled for.

    It is this machine's CPU, or a GPU that need not be present. For a GPU, JAX must use the CPU or
    not have started; it will use the CPU.

    Raises:
        ValueError: if this system does not describe its processor; MissingExtraError without a
            CUDA plugin of JAX.
    """
    if target in GPUS:
        return gpu_devices(GPUS[target], "1")[0]
    if not this_build().instructions:
        raise ValueError(
            "executables need /proc/cpuinfo, to record the processor; export on Linux, or leave "
            "out --compile"
        )
    return jax.devices(TARGETS[target])[0]


def compile_executables(
    target: str,
    device: Any,
    exported: Mapping[str, Any],
    cfg: GPTConfig,
    weights: Mapping[str, Any],
    layout: CacheLayout,
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Compile the exported programs for the common sizes, and for the current `nn.target`.

    Args:
        target: a key of `TARGETS`.
        device: its `target_device`.
        exported: the two programs for the platform of `target`.
        cfg: the model's config.
        weights: its weights, or their shapes.
        layout: the layout of the cache in the file format.

    Returns:
        The target's entry in the manifest, and the contents of the files by name.
    """
    files, sizes_of = {}, {}
    with disabled_compilation_cache():
        for program in PROGRAMS:
            for sizes in common_sizes(program, cfg.context_length):
                arguments = program_arguments(program, weights, layout, sizes)
                compiled = lower_for(device, program, exported[program], arguments).compile()
                name = f"{program}.{target}.{sizes.rows}x{sizes.width or sizes.slots}.executable"
                files[name], *_ = serialize_executable.serialize(compiled)
                sizes_of[name] = [program, *sizes]
    build = build_for(device)
    return {"platform": TARGETS[target], **build.to_dict(), "programs": sizes_of}, files


def lower_for(device: Any, program: str, exported: Any, arguments: tuple[Any, ...]) -> Any:
    """Return the `jax.stages.Lowered` of an exported program for one device.

    Args:
        device: the device, which may be absent.
        program: name of the program.
        exported: the program, for the platform of the device.
        arguments: the shapes of its arguments.
    """
    on = SingleDeviceSharding(device)
    options = decode_options(_ROWS) if program == "decode" else {}
    call = jax.jit(
        exported.call,
        in_shardings=on,
        out_shardings=on,
        donate_argnums=DONATED[program],
        compiler_options=options,
    )
    return call.lower(*arguments)


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
        ValueError: if they were compiled for other versions or another processor or GPU.
        KeyError, TypeError, AttributeError: for a damaged entry.
    """
    found: Executables = {program: {} for program in PROGRAMS}
    refused: dict[str, str] = {}  # target -> reason
    for target, entry in entries.items():
        files = {folder / name: sizes for name, sizes in entry["programs"].items()}
        files = {path: sizes for path, sizes in files.items() if path.is_file()}
        if entry["platform"] != platform or not files:
            continue
        if reason := Build.from_dict(entry).difference(build_for(jax.devices()[0])):
            refused[target] = reason
            continue
        for path, (program, *numbers) in files.items():
            sizes = Sizes(*numbers)
            arguments = program_arguments(program, weights, layout, sizes)
            state = arguments[DONATED[program]]
            found[program][sizes] = partial(_load, path, read(path), arguments, state)
        return found
    if refused:
        patterns = " and ".join(str(folder / f"*.{target}.executable") for target in refused)
        raise ValueError(
            f"{folder} has executables {next(iter(refused.values()))}; {_again()}remove {patterns}"
        )
    return found


def _again() -> str:
    """Return the advice to export again for this process, unless no target is for its device."""
    device = jax.devices()[0]
    kinds = {gpu.name: target for target, gpu in GPUS.items()}
    target = device.platform if device.platform in TARGETS else kinds.get(device.device_kind)
    return f"export again with --compile {target}, or " if target else ""


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
