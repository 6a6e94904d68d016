"""Read PyTorch's `.pth` files without running code in them, and write such files."""

import io
import pickletools
import re
import tarfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from obscura_jax.extras import require
from obscura_jax.interop.entries import choose
from obscura_jax.interop.pickled_numpy import STAND_INS

# The pickle of a checkpoint is far smaller; its numbers are in other files of the archive.
_MAX_PICKLE_BYTES = 1 << 24


def read_torch(
    path: Path, entry: str | None = None
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Return the state dict in a `.pth` file, and the file's other entries by name.

    The file is a state dict, or a dictionary with one among its entries; see `entries.choose`.

    Raises:
        ValueError: if the file is damaged, holds anything else, or its pickle calls a function.
    """
    torch = require("torch", "torch", f"reading {path}")
    content = _load(torch, path)
    if not isinstance(content, Mapping):
        raise ValueError(
            f"{path} holds an object of type {type(content).__name__}, not a state dict; save "
            "model.state_dict()"
        )
    try:
        found = choose(content, entry, torch.is_tensor)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    tensors: dict[str, NDArray[Any]] = {}
    for name, tensor in found.tensors.items():
        if not isinstance(name, str):
            raise ValueError(
                f"{path}: the state dict has a tensor of the name {name!r}, not text; rename it"
            )
        try:
            if tensor.dtype == torch.bfloat16:  # a type that torch does not convert to NumPy
                bits = tensor.detach().contiguous().view(torch.int16).numpy()
                tensors[name] = bits.view(ml_dtypes.bfloat16)
            else:
                tensors[name] = tensor.detach().numpy()
        except (TypeError, RuntimeError) as error:  # sparse, quantized, 8-bit, without storage
            raise ValueError(
                f"{path}: {name} is not a plain array ({error}); save it as float32"
            ) from error
    return tensors, dict(found.others)


def write_torch(
    tensors: Mapping[str, NDArray[Any]],
    path: Path,
    *,
    extra_entries: Mapping[str, Any] | None = None,
) -> None:
    """Write `tensors` as a state dict; widen types of less than 32 bits to float32.

    With `extra_entries`, the file is a dictionary of these and of "model", the state dict.

    Raises:
        OSError: if the file cannot be written.
    """
    torch = require("torch", "torch", "writing a PyTorch file")
    state = {
        name: torch.tensor(tensor if tensor.itemsize >= 4 else tensor.astype(np.float32))
        for name, tensor in tensors.items()
    }
    try:
        with path.open("wb") as file:  # if given a path, torch hides the system's error
            torch.save(state if extra_entries is None else {"model": state, **extra_entries}, file)
    except RuntimeError as error:  # from torch's writer, about an incomplete archive
        raise _system_error(error) from error


def _load(torch: Any, path: Path) -> Any:
    try:
        if zipfile.is_zipfile(path):
            _check_checksums(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings are for callers of torch
            with torch.serialization.safe_globals(STAND_INS):
                return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load has no error type of its own
        if called := _refused_call(path, error):
            raise ValueError(
                f"{path} refused: its pickle calls {called}, but a checkpoint of weights calls "
                "nothing; save model.state_dict(), not the model"
            ) from error
        if _is_tar(path):
            raise ValueError(
                f"{path} is a tar archive, as PyTorch wrote before version 0.1.10, and reading it "
                "could run code; load it with that PyTorch, and save model.state_dict() again"
            ) from error
        raise ValueError(
            f"{path} is damaged, cut short or not a PyTorch checkpoint{_reason(error)}; "
            "fetch it again, or save model.state_dict() with torch.save again"
        ) from error


def _is_tar(path: Path) -> bool:
    """Return whether the file is a tar archive with content; zeros are an empty archive."""
    try:
        with tarfile.open(path, "r:") as archive:
            return archive.next() is not None
    except (tarfile.TarError, OSError):
        return False


def _check_checksums(path: Path) -> None:
    """Raise BadZipFile if the checksum of a file in the archive is wrong; torch checks none."""
    with zipfile.ZipFile(path) as archive:
        if wrong := archive.testzip():
            raise zipfile.BadZipFile(f"the checksum of {wrong} is wrong")


def _refused_call(path: Path, error: Exception) -> str | None:
    """Return the function that a refused pickle calls: torch's name for it, or the first found."""
    if named := re.search(r"GLOBAL ([\w.]+) (was not|whose)", str(error)):
        return named[1]
    # torch also refuses pickles of newer protocols, which may have harmless names only.
    harmless = ("torch.", "collections.", "_codecs.encode", *(name for _, name in STAND_INS))
    return next((name for name in _imported_names(path) if not name.startswith(harmless)), None)


def _system_error(error: BaseException) -> OSError:
    """Return the system's error during which `error` was raised."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__context__
    return cause or OSError(f"torch could not write the file ({error})")


def _imported_names(path: Path) -> Iterator[str]:
    """Yield the dotted names that the pickles in the file import, without running them."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                names = [name for name in archive.namelist() if name.endswith("data.pkl")]
                pickled = archive.open(names[0]).read(_MAX_PICKLE_BYTES)
        else:
            with path.open("rb") as file:
                pickled = file.read(_MAX_PICKLE_BYTES)
        stream = io.BytesIO(pickled)
        while stream.tell() < len(pickled):  # torch's older format is a sequence of pickles
            strings: list[Any] = ["", ""]
            memo: dict[Any, Any] = {}
            top: Any = None  # the top of the stack, if it is a string
            for opcode, value, _ in pickletools.genops(stream):
                name = ""
                if opcode.name == "MEMOIZE":
                    memo[len(memo)] = top
                elif opcode.name.endswith("PUT"):
                    memo[value] = top
                elif opcode.name in ("GLOBAL", "INST"):
                    name, top = str(value), None
                elif opcode.name == "STACK_GLOBAL":
                    name, top = " ".join(strings[-2:]), None
                else:
                    top = memo.get(value) if opcode.name.endswith("GET") else value
                    strings += [top] if isinstance(top, str) else []
                if re.fullmatch(r"[\w.]+ [\w.]+", name):
                    yield name.replace(" ", ".")
    except Exception:  # damage or the end of the pickles: errors of any type
        return


def _reason(error: Exception) -> str:
    if not isinstance(error, zipfile.BadZipFile | EOFError | RuntimeError | OSError):
        return ""  # an accident of reading random bytes as a pickle
    text = str(error).split(". This is an internal miniz error")[0].split("\n")[0].strip()
    return f" ({text})" if text else ""
