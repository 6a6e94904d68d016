"""Load the class that `--against FILE.py:CLASS` names, and build modules from it."""

import inspect
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from obscura_jax.config import GPTConfig
from obscura_jax.interop import name_tables
from obscura_jax.parity.guest import Guest
from obscura_jax.parity.torch_lift import in_float64
from obscura_jax.parity.user_file import import_file


class UsersClass:
    """A class in a user's file.

    Attributes:
        guest: runs the user's code.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if `spec` is not FILE.py:CLASS, or the file does not run or lacks the class.
    """

    def __init__(self, spec: str) -> None:
        file, colon, name = spec.rpartition(":")
        if not colon or not file.endswith(".py"):
            raise ValueError(f"--against takes course, hf or FILE.py:CLASS, not {spec!r}")
        path = Path(file)
        self.guest = Guest(str(path))
        self._make = _attribute(path, name, self.guest)
        self.guest.label, self._name = spec, name

    def build(self, cfg: GPTConfig, dtype: str = "float32") -> Any:
        """Return a new module, built from the dictionary of `cfg`.

        Args:
            cfg: the model.
            dtype: type of the tensors that the class creates without a type.

        Raises:
            ValueError: if it does not build, or is not a torch.nn.Module.
        """
        import torch

        call = f"does not build as {self._name}(cfg) from the course's dictionary"
        with self.guest("does not build" if self._takes_one() else call), default_type(dtype):
            module = self._make(cfg.to_dict())
        if not isinstance(module, torch.nn.Module):
            raise ValueError(
                f"{self.guest.label} is not a torch.nn.Module; derive the class from it"
            )
        return module

    def _takes_one(self) -> bool:
        """Return False if the class cannot be called with one positional argument."""
        try:
            inspect.signature(self._make).bind({})
        except (TypeError, ValueError) as error:
            return not isinstance(error, TypeError)
        return True


def default_type(dtype: str) -> AbstractContextManager[None]:
    """Return a context in which PyTorch creates tensors in the type `dtype` by default.

    A constant such as `torch.tensor(2 / torch.pi)` then has all the digits of float64. In a float64
    model it is rounded to float32 otherwise, which looks like a mistake.
    """
    return in_float64([]) if dtype == "float64" else nullcontext()


def _attribute(path: Path, name: str, guest: Guest) -> Any:
    module = import_file(path, guest)
    with guest("does not run"):
        exists = hasattr(module, name)  # may run the module's own `__getattr__`
    if not exists:
        classes = [k for k, v in vars(module).items() if inspect.isclass(v)]
        raise ValueError(
            f"{path} has no {name}; it has {name_tables.summarize_names(classes or ['no class'])}"
        )
    return getattr(module, name)
