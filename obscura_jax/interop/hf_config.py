"""Read and write the configs of Hugging Face (`config.json`) and nanoGPT (`model_args`).

They have no entry for two facts: that queries, keys and values have no biases, and that a head
equal to the token table is not tied to it. Those are written under the extra name "obscura_jax",
which the other programs ignore, so a round trip returns the same config.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from obscura_jax.config import GPTConfig
from obscura_jax.interop.config_values import check_ln_eps, read_values, whole_number

_RECORD = "obscura_jax"
_GPT2_SIZES = {
    "vocab_size": "vocab_size",
    "n_positions": "context_length",
    "n_embd": "emb_dim",
    "n_layer": "n_layers",
    "n_head": "n_heads",
}
_NANOGPT_SIZES = {
    "vocab_size": "vocab_size",
    "block_size": "context_length",
    "n_embd": "emb_dim",
    "n_layer": "n_layers",
    "n_head": "n_heads",
}
_GPT2_VALUES = {
    "tie_word_embeddings": "tie_weights",
    "layer_norm_epsilon": "ln_eps",
    "resid_pdrop": "drop_rate",
}
_GPT2_END = 50256  # GPT-2's default for the first and the last token of a text
_UNSET = dict.fromkeys(("bos_token_id", "eos_token_id"))
# Other entries of a GPT-2 config that are read or written here, or that describe only the file.
_OTHERS = (
    "n_inner",
    "n_ctx",
    "tie_word_embeddings",
    "layer_norm_epsilon",
    "resid_pdrop",
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "_name_or_path",
    _RECORD,
)
# Entries of a GPT-2 config that change the function, and the values that this model computes.
_FIXED: dict[str, tuple[Any, ...]] = {
    "model_type": ("gpt2",),
    "activation_function": (
        "gelu_new",
        "gelu_pytorch_tanh",
        "gelu_python_tanh",
        "gelu_accurate",
        "gelu_fast",  # with rounded constants: within 9e-13 of the others in float64
    ),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}
_EXACT_GELU = ("gelu", "gelu_python")


def from_hf_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of `GPTConfig` in a GPT-2 `config.json`; absent ones have GPT-2's default.

    Raises:
        ValueError: if it describes a model that computes something else, or contradicts itself.
    """
    for name, allowed in _FIXED.items():
        if name in config and config[name] not in allowed:
            message = f"the config says {name}={config[name]!r};"
            if config[name] in _EXACT_GELU:
                message += " that is the exact (erf) form, which differs by up to 5e-4;"
            raise ValueError(f"{message} this model computes {allowed[0]!r}")
    sizes = read_values(config, _GPT2_SIZES)
    inner, width = whole_number("n_inner", config.get("n_inner")), sizes.get("emb_dim")
    if inner is not None and width is not None and inner != 4 * width:
        raise ValueError(f"the config says n_inner={inner}; this model has 4 n_embd = {4 * width}")
    defaults = {"tie_weights": True, "ln_eps": 1e-5, "drop_rate": 0.1}
    return defaults | sizes | read_values(config, _GPT2_VALUES) | _recorded(config, "qkv_bias")


def special_ids(
    config: Mapping[str, Any], generation: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the special tokens in a GPT-2 `config.json`, and our record of its tokenizer.

    An id that is null or absent there is read from `generation_config.json`, if it has the id. An
    id that is absent from both has GPT-2's default if the vocabulary is large enough; an id that is
    null stays unset.

    Raises:
        ValueError: for an id that is neither a whole number nor a list of whole numbers.
    """
    ids: dict[str, Any] = {}
    size = whole_number("vocab_size", config.get("vocab_size"))
    if size is None or size > _GPT2_END:
        ids = {name: _GPT2_END for name in _UNSET if name not in config}
    for entries in (generation or {}, config):
        found = {name: _ids(name, value) for name, value in entries.items() if _is_id(name)}
        ids |= {name: value for name, value in found.items() if value is not None}
    return ids | _recorded(config, "tokenizer")


def _ids(name: str, value: Any) -> Any:
    if isinstance(value, list):
        return [whole_number(name, x) for x in value]
    return whole_number(name, value)


def _is_id(name: str) -> bool:
    return name.endswith("_token_id")


def unused_entries(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the entries of a GPT-2 `config.json` that are neither read nor written here.

    Entries that are null, or that describe the file and not the model, are not included.
    """
    rate = config.get("resid_pdrop", 0.1)
    kept = {*_GPT2_SIZES, *_FIXED, *_OTHERS}
    kept |= {name for name in ("embd_pdrop", "attn_pdrop") if config.get(name, rate) == rate}
    return tuple(
        name
        for name, value in config.items()
        if value is not None and name not in kept and not _is_id(name)
    )


def to_hf_config(cfg: GPTConfig, tokens: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the `config.json` with which transformers' `GPT2LMHeadModel` is this model.

    Args:
        cfg: the model's config.
        tokens: `TokenRecord.to_dict()`. A special token that it lacks is written as null, which
            transformers reads as unset; for an absent entry it would use GPT-2's default.
    """
    ids = dict(tokens or {})
    tokenizer = {name: ids.pop(name) for name in ("tokenizer",) if name in ids}
    return {
        "architectures": ["GPT2LMHeadModel"],
        **{foreign: getattr(cfg, native) for foreign, native in _GPT2_SIZES.items()},
        "n_ctx": cfg.context_length,
        "n_inner": None,
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "layer_norm_epsilon": cfg.ln_eps,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), cfg.drop_rate),
        "tie_word_embeddings": cfg.tie_weights,
        **_UNSET,
        **ids,
        "dtype": "float32",
        _RECORD: {"qkv_bias": cfg.qkv_bias, **tokenizer},
    }


def from_model_args(extra_entries: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of `GPTConfig` in a nanoGPT `ckpt.pt`, given its entries without "model".

    The result may also have "tokens", which `to_model_args` has written.
    """
    args = extra_entries.get("model_args")
    args = args if isinstance(args, Mapping) else {}
    defaults = {"tie_weights": True, "drop_rate": 0.1}
    hints = defaults | read_values(args, {**_NANOGPT_SIZES, "dropout": "drop_rate"})
    return hints | _recorded(extra_entries.get("config"), "qkv_bias", "tie_weights", "tokens")


def from_course_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of `GPTConfig` in a dictionary such as the course's."""
    return read_values(config, {f.name: f.name for f in fields(GPTConfig)})


def to_model_args(cfg: GPTConfig, tokens: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the entries of a nanoGPT `ckpt.pt` without "model"; `tokens` as in `to_hf_config`.

    Raises:
        ValueError: if nanoGPT's layer norm, whose eps is fixed, would compute something else.
    """
    check_ln_eps("nanoGPT's", cfg)
    args = {foreign: getattr(cfg, native) for foreign, native in _NANOGPT_SIZES.items()}
    record: dict[str, Any] = {"qkv_bias": cfg.qkv_bias, "tie_weights": cfg.tie_weights}
    record |= {"tokens": dict(tokens)} if tokens else {}
    args |= {"dropout": cfg.drop_rate, "bias": True}
    return {"model_args": args, "config": {_RECORD: record}}


def _recorded(holder: Any, *names: str) -> dict[str, Any]:
    record = holder.get(_RECORD) if isinstance(holder, Mapping) else None
    entries = record if isinstance(record, Mapping) else {}
    return {name: entries[name] for name in names if name in entries}
