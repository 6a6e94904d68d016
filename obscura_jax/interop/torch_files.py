"""PyTorch's `.pth` files: read without running any code that they hold, and written."""

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
from obscura_jax.interop.entries import chosen
from obscura_jax.interop.pickled_numpy import STAND_INS

_MAX_PICKLE_BYTES = (
    1 << 24
)  # bytes; the pickle of a checkpoint is far smaller, its numbers are kept apart


def read_torch(
    path: Path, entry: str | None = None
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Return the state dict in a `.pth` file, and what the file holds besides, by name.

    The file is a state dict, or a dictionary with one among its entries; see `entries.chosen`.

    Raises:
        ValueError: when the file is damaged, holds anything but that, or calls a function.
    """
    torch = require("torch", "torch", f"reading {path}")
    content = _load(torch, path)
    if not isinstance(content, Mapping):
        raise ValueError(
            f"{path} holds one object of type {type(content).__name__}, not a state dict"
        )
    try:
        found = chosen(content, entry, torch.is_tensor)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    tensors: dict[str, NDArray[Any]] = {}
    for name, tensor in found.tensors.items():
        if not isinstance(name, str):
            raise ValueError(f"{path}: entry {name!r} of the state dict is not a named tensor")
        try:
            if tensor.dtype == torch.bfloat16:  # a type that torch's `numpy` does not give
                bits = tensor.detach().contiguous().view(torch.int16).numpy()
                tensors[name] = bits.view(ml_dtypes.bfloat16)
            else:
                tensors[name] = tensor.detach().numpy()
        except (TypeError, RuntimeError) as error:  # sparse, quantised, of 8 bits, without storage
            raise ValueError(f"{path}: {name} is not a plain array: {error}") from error
    return tensors, dict(found.others)


def write_torch(
    tensors: Mapping[str, NDArray[Any]], path: Path, *, beside: Mapping[str, Any] | None = None
) -> None:
    """Write `tensors` as a state dict; types of less than 32 bits are widened to float32.

    With `beside`, the state dict is the entry "model" among those.

    Raises:
        OSError: when the file cannot be written.
    """
    torch = require("torch", "torch", "writing a PyTorch file")
    state = {
        name: torch.tensor(tensor if tensor.itemsize >= 4 else tensor.astype(np.float32))
        for name, tensor in tensors.items()
    }
    try:
        with path.open("wb") as file:  # given a path, torch would not say what the system said
            torch.save(state if beside is None else {"model": state, **beside}, file)
    except RuntimeError as error:  # of torch's writer, which was left without an end
        raise _of_the_system(error) from error


def _load(torch: Any, path: Path) -> Any:
    try:
        if zipfile.is_zipfile(path):
            _check_sums(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they advise the authors of calls to torch
            with torch.serialization.safe_globals(STAND_INS):
                return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load has no error type of its own
        if called := _refused_call(path, error):
            raise ValueError(
                f"{path} refused: its pickle calls {called}, and a checkpoint of weights calls "
                "nothing; save model.state_dict(), not the model"
            ) from error
        if _is_tar(path):
            raise ValueError(
                f"{path} is a tar archive, as PyTorch wrote before version 0.1.10, and reading it "
                "could run code: load it with that PyTorch, and save model.state_dict() again"
            ) from error
        raise ValueError(
            f"{path} is damaged, cut short or not a PyTorch checkpoint{_reason(error)}: "
            "fetch it again, or save model.state_dict() with torch.save again"
        ) from error


def _is_tar(path: Path) -> bool:
    """Return whether the file is a tar archive that is not empty, as one of blank bytes is."""
    try:
        with tarfile.open(path, "r:") as archive:
            return archive.next() is not None
    except (tarfile.TarError, OSError):
        return False


def _check_sums(path: Path) -> None:
    """Raise BadZipFile unless every file in the archive has its checksum: torch looks at none."""
    with zipfile.ZipFile(path) as archive:
        if wrong := archive.testzip():
            raise zipfile.BadZipFile(f"the checksum of {wrong} is wrong")


def _refused_call(path: Path, error: Exception) -> str | None:
    """The function that a refused pickle calls: as torch names it, else the first one in there."""
    if named := re.search(r"GLOBAL ([\w.]+) (was not|whose)", str(error)):
        return named[1]
    # Pickles of a newer protocol, which torch refuses too, have harmless names as well.
    harmless = ("torch.", "collections.", "_codecs.encode", *(name for _, name in STAND_INS))
    return next((name for name in _globals(path) if not name.startswith(harmless)), None)


def _of_the_system(error: BaseException) -> OSError:
    """Return the system's error while which `error` arose."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__context__
    return cause or OSError(f"torch could not write it: {error}")


def _globals(path: Path) -> Iterator[str]:
    """The dotted names that the pickles in the file import; nothing is run."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                names = [name for name in archive.namelist() if name.endswith("data.pkl")]
                pickled = archive.open(names[0]).read(_MAX_PICKLE_BYTES)
        else:
            with path.open("rb") as file:
                pickled = file.read(_MAX_PICKLE_BYTES)
        stream = io.BytesIO(pickled)
        while stream.tell() < len(pickled):  # torch's older format is several pickles in a row
            strings: list[Any] = ["", ""]
            memo: dict[Any, Any] = {}
            top: Any = None  # of the stack, where it is a string
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
    except Exception:  # damaged, or no pickle any longer: errors of any type
        return


def _reason(error: Exception) -> str:
    if not isinstance(error, zipfile.BadZipFile | EOFError | RuntimeError | OSError):
        return ""  # what reading random bytes as a pickle comes upon says nothing
    text = str(error).split(". This is an internal miniz error")[0].split("\n")[0].strip()
    return f" ({text})" if text else ""
