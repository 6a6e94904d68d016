"""The tensors of small models under the names of every dialect, and files of them."""

import json

import numpy as np
import safetensors.numpy
from flax.traverse_util import unflatten_dict

from obscura_jax.interop import name_tables
from obscura_jax.interop.checkpoint import save_hf
from tests.support.models import BIASED, TIED, course_model, leaves, model_of


def state_of(cfg=TIED, table=name_tables.HUGGING_FACE):
    """Return the tensors of `model_of(cfg)` as a file of a dialect has them."""
    native = {name: np.asarray(leaf) for name, leaf in leaves(model_of(cfg)).items()}
    return name_tables.to_dialect(table, cfg, native)


def states():
    """Return each dialect's tensors, and the parameters that they are."""
    course = {name: x.numpy() for name, x in course_model().state_dict().items()}
    body = {name.removeprefix("transformer."): x for name, x in state_of().items()}
    return {
        "course": (course, model_of(BIASED)),
        "hf": (state_of(), model_of(TIED)),
        "hf, untied": (state_of(BIASED), model_of(BIASED)),
        "hf, no head": (body, model_of(TIED)),
        "nanogpt": (state_of(table=name_tables.NANOGPT), model_of(TIED)),
        "flax": (state_of(table=name_tables.FLAX), model_of(TIED)),
        "flax, untied": (state_of(BIASED, name_tables.FLAX), model_of(BIASED)),
    }


def flax_tree(hf_model):
    """Return the parameters of transformers' Flax GPT-2 for a model of its PyTorch one.

    Its own layers store their kernels as (out, in); an untied head is Flax's, with (in, out).
    """
    flat = {}
    for name, tensor in hf_model.transformer.state_dict().items():
        *path, last = name.split(".")
        if "ln_" in name:
            last = {"weight": "scale", "bias": "bias"}[last]
        elif last == "weight":
            last = "embedding" if path[0] in ("wte", "wpe") else "kernel"
        turned = tensor.T if last == "kernel" else tensor
        flat[("transformer", *path, last)] = turned.numpy()
    if not hf_model.config.tie_word_embeddings:
        head = hf_model.lm_head.weight.detach().numpy()
        flat[("lm_head", "kernel")] = np.ascontiguousarray(head.T)
    return unflatten_dict(flat)


def save_tensors(path, tensors, **metadata):
    """Write a safetensors file with safetensors' own writer; return its path."""
    contiguous = {name: np.ascontiguousarray(x) for name, x in tensors.items()}
    safetensors.numpy.save_file(contiguous, path, **metadata)
    return path


def hf_folder_of(folder, tensors, **config):
    """Write a Hugging Face folder with these tensors and changes to the config; return it."""
    save_hf(folder, TIED, model_of(TIED))
    save_tensors(folder / "model.safetensors", tensors)
    change_json(folder / "config.json", **config)
    return folder


def change_json(path, **entries):
    """Replace entries of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))
