"""Find the file of weights of a source: a file, a folder, or a model of the Hugging Face hub."""

import os
from pathlib import Path

from obscura_jax.extras import require

FORMAT, WEIGHTS, CONFIG = "obscura_jax", "model.safetensors", "config.json"
MANIFEST, FORMATS = "manifest.json", "obscura_jax artifact"  # of exports; see export.artifact
TORCH_SUFFIXES, SAFETENSORS_SUFFIX = (".pth", ".pt", ".bin", ".ckpt"), ".safetensors"
# Files of weights in a folder; the first that exists is read.
WEIGHT_FILES = (
    WEIGHTS,
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "flax_model.msgpack",
)
_SHIPPED = {"tiny": Path(__file__).parents[1] / "models" / "tiny"}
_TOKEN_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")  # of the hub
_HUB = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")


def is_exported(folder: str | Path) -> bool:
    """Return whether `folder` is an exported model; a folder with a config is not."""
    manifest, config = (os.path.join(folder, name) for name in (MANIFEST, CONFIG))
    return os.path.isfile(manifest) and not os.path.lexists(config)


def resolve_weights(source: str | Path) -> Path:
    """Return the file of weights of a source; see `checkpoint.load_model`.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if the source is an exported model, the hub cannot be reached, or
            huggingface-hub is missing.
    """
    path = _SHIPPED.get(str(source), Path(source))
    if str(source) in _HUB:
        return _fetch(str(source))
    if not str(source) or not os.path.exists(path):
        raise FileNotFoundError(
            f"no model at {str(source)!r}; give a folder, a .safetensors or .pth file, "
            f"tiny, {', '.join(_HUB)}, or torch-seed:N"
        )
    if not path.is_dir():
        return path
    if is_exported(path):
        raise ValueError(
            f"{path} is an exported model, for obscura generate and obscura info only; give the "
            "folder that it was exported from"
        )
    found = [name for name in WEIGHT_FILES if (path / name).is_file()]
    for part, exists in ((WEIGHTS, found), (CONFIG, (path / CONFIG).is_file())):
        if not exists:
            raise FileNotFoundError(
                f"{path} is not a model: the folder has no {part}; add it, or name another folder"
            )
    return path / found[0]


def _fetch(name: str) -> Path:
    hub = require("huggingface_hub", "hub", f"fetching {name}")
    files = [CONFIG, WEIGHTS, *_TOKEN_FILES]
    try:
        folder = hub.snapshot_download(f"openai-community/{name}", allow_patterns=files)
    except Exception as error:  # the network, the hub and the disk have their own classes of errors
        reason = str(error).split("\n")[0]
        raise ValueError(
            f"{name} cannot be fetched from the Hugging Face hub ({reason}); fetch its "
            f"config.json and {WEIGHTS} elsewhere, and give their folder"
        ) from error
    return Path(folder) / WEIGHTS
