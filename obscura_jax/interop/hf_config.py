"""Configs of other projects <-> ours: Hugging Face's `config.json`, nanoGPT's `model_args`.

What theirs cannot say -- that queries, keys and values have no biases, that a head equal to the
token table is not tied to it -- is kept beside it under the name "obscura_jax", which they ignore;
so a round trip gives the same config back.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from obscura_jax.config import GPTConfig
from obscura_jax.interop.config_values import read_values, whole_number

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
_GPT2_END = 50256  # the id that GPT-2's config has for its first and last token
_UNSET = dict.fromkeys(("bos_token_id", "eos_token_id"))
# Entries of a GPT-2 config that are read or written here, or that describe the file only.
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
# What a GPT-2 config may hold that changes the function, and what it has to be here.
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
    """What a GPT-2 `config.json` says of our config; what it leaves out is GPT-2's default.

    Raises:
        ValueError: when it describes a model that computes something else, or contradicts itself.
    """
    for name, allowed in _FIXED.items():
        if name in config and config[name] not in allowed:
            said = f"the config says {name}={config[name]!r};"
            if config[name] in _EXACT_GELU:
                said += " that is the exact (erf) form, which differs by up to 5e-4;"
            raise ValueError(f"{said} this model computes {allowed[0]!r}")
    known = read_values(config, _GPT2_SIZES)
    inner, width = whole_number("n_inner", config.get("n_inner")), known.get("emb_dim")
    if inner is not None and width is not None and inner != 4 * width:
        raise ValueError(f"the config says n_inner={inner}; this model has 4 n_embd = {4 * width}")
    defaults = {"tie_weights": True, "ln_eps": 1e-5, "drop_rate": 0.1}
    return defaults | known | read_values(config, _GPT2_VALUES) | _recorded(config, "qkv_bias")


def special_ids(
    config: Mapping[str, Any], generation: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the special tokens that a GPT-2 `config.json` names, and our record of its tokenizer.

    An id that is null or absent there is the one in `generation_config.json`, if any. Of an id that
    is absent from both, GPT-2's default holds if the vocabulary has it; null means unset.

    Raises:
        ValueError: for an id that is neither a whole number nor a list of them.
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
    """Return the names in a GPT-2 `config.json` that are read by nothing here and written nowhere.

    Those that are null, or that describe the file and not the model, are not among them.
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
    """The `config.json` with which transformers' `GPT2LMHeadModel` is this model.

    Args:
        cfg: the model's config.
        tokens: `TokenRecord.to_dict()`. A special token that it lacks is written as null, for
            which transformers takes none; GPT-2's would be its default.
    """
    ids = dict(tokens or {})
    tokenizer = {name: ids.pop(name) for name in ("tokenizer",) if name in ids}
    return {
        "architectures": ["GPT2LMHeadModel"],
        **{theirs: getattr(cfg, ours) for theirs, ours in _GPT2_SIZES.items()},
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


def from_model_args(beside: Mapping[str, Any]) -> dict[str, Any]:
    """What the entries beside `model` in a nanoGPT `ckpt.pt` say of our config."""
    args = beside.get("model_args")
    args = args if isinstance(args, Mapping) else {}
    known = {"tie_weights": True, "drop_rate": 0.1}
    known |= read_values(args, {**_NANOGPT_SIZES, "dropout": "drop_rate"})
    return known | _recorded(beside.get("config"), "qkv_bias", "tie_weights", "tokens")


def from_course_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a dictionary, such as the course's, that our config has."""
    return read_values(config, {f.name: f.name for f in fields(GPTConfig)})


def to_model_args(cfg: GPTConfig, tokens: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The entries beside `model` of a nanoGPT `ckpt.pt`; `tokens` is `TokenRecord.to_dict()`.

    Raises:
        ValueError: when nanoGPT's layer norm, whose eps is fixed, would compute something else.
    """
    if cfg.ln_eps != GPTConfig.ln_eps:
        raise ValueError(
            f"nanoGPT's layer norm has eps {GPTConfig.ln_eps}, and this model's ln_eps is "
            f"{cfg.ln_eps}: keep it in the native form"
        )
    args = {theirs: getattr(cfg, ours) for theirs, ours in _NANOGPT_SIZES.items()}
    record: dict[str, Any] = {"qkv_bias": cfg.qkv_bias, "tie_weights": cfg.tie_weights}
    record |= {"tokens": dict(tokens)} if tokens else {}
    args |= {"dropout": cfg.drop_rate, "bias": True}
    return {"model_args": args, "config": {_RECORD: record}}


def _recorded(holder: Any, *names: str) -> dict[str, Any]:
    record = holder.get(_RECORD) if isinstance(holder, Mapping) else None
    known = record if isinstance(record, Mapping) else {}
    return {name: known[name] for name in names if name in known}
