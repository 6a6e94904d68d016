"""Import a user's Python file, so that it can import the files next to it."""

import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

from obscura_jax.parity.guest import Guest


class _SourceLoader(SourceFileLoader):
    """A loader that compiles the source each time.

    Python's own keeps bytecode next to the file, and does not notice an edit of the same size
    within the same second.
    """

    def get_code(self, fullname: str) -> CodeType:
        """Return the code of the file."""
        return self.source_to_code(self.get_data(self.path), self.path)


def import_file(path: Path, guest: Guest) -> ModuleType:
    """Run a Python file as a module, and return the module.

    The guest's search path then contains the folder of the file, or of the package that it is in.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a Python file, or fails; the message names the file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    name = _module_name(path, guest)
    loader = _SourceLoader(name, str(path)) if path.suffix == ".py" else None
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look it up there
    exits = "exits on import; put the code that it runs under `if __name__ == '__main__':`"
    with guest("does not run", exits):
        spec.loader.exec_module(module)
    return module


def _module_name(path: Path, guest: Guest) -> str:
    """Return the module name of a file, and make the files next to it importable."""
    folder, parts = path.resolve().parent, [path.stem]
    in_package = (folder / "__init__.py").is_file()
    # A script's own folder comes first; a package's modules must not hide those of libraries.
    guest.search_path.insert(len(guest.search_path) if in_package else 0, str(folder))
    while (folder / "__init__.py").is_file():
        folder, parts = folder.parent, [folder.name, *parts]
    if len(parts) == 1:
        return f"obscura_parity_{path.stem}"  # not the stem: the file may be called torch.py
    guest.search_path.insert(0, str(folder))  # for its relative imports
    return ".".join(parts)
