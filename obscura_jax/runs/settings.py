"""The settings of a training run. Each field declares its default, check, help and stored name.

`obscura train` generates its options from the fields of `TrainSettings`, and a run folder stores
their values in settings.json.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Self

from obscura_jax.config import PRESETS, GPTConfig
from obscura_jax.runs.setting_kinds import (
    FRACTION,
    NONNEGATIVE,
    PATH,
    PATHS,
    POSITIVE,
    PROPER_FRACTION,
    RATE,
    SEED,
    SIZE,
    Setting,
    about,
    one_of,
)

DEFAULT_STEPS = 1000
DEFAULT_SIZES = {  # without a preset
    "vocab_size": 50257,
    "emb_dim": 128,
    "n_heads": 4,
    "n_layers": 4,
    "context_length": 128,
}


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """All settings that determine the result of a training run, up to rounding.

    Give at most one of `text` and `data`, and of `steps` and `epochs`; `preset` excludes other
    sizes of the model. Paths become absolute, and sizes that are not given get their values.

    Raises:
        ValueError: if a value is out of range, if two settings exclude each other, or if sizes do
            not fit together.
    """

    text: Sequence[str | Path] | None = field(
        default=None,
        metadata=about(
            "data",
            PATHS,
            "UTF-8 text files to train on; without them the command reads standard input",
            "FILE",
        ),
    )
    data: str | Path | None = field(
        default=None,
        metadata=about(
            "data",
            PATH,
            "folder with nanoGPT's token files train.bin and val.bin, instead of text",
            "DIR",
        ),
    )
    val_fraction: float = field(
        default=0.1,
        metadata=about(
            "data",
            PROPER_FRACTION,
            "fraction of the text, taken from its end, used for validation",
            "F",
            old="held_out",
        ),
    )
    stride: int | None = field(
        default=None,
        metadata=about(
            "data",
            SIZE,
            "tokens from the start of one window to the next; default: the context length",
            "N",
        ),
    )
    batch_size: int = field(default=16, metadata=about("data", SIZE, "windows per step", "B"))

    preset: str | None = field(
        default=None,
        metadata=about("model", one_of(*PRESETS), "known model; sets the next five options"),
    )
    vocab_size: int | None = field(
        default=None,
        metadata=about(
            "model", SIZE, "vocabulary size: GPT-2's first V - 1 tokens and <|endoftext|>", "V"
        ),
    )
    emb_dim: int | None = field(
        default=None, metadata=about("model", SIZE, "width of the embeddings and blocks", "D")
    )
    n_heads: int | None = field(
        default=None, metadata=about("model", SIZE, "attention heads per block", "H")
    )
    n_layers: int | None = field(
        default=None, metadata=about("model", SIZE, "number of transformer blocks", "N")
    )
    context_length: int | None = field(
        default=None, metadata=about("model", SIZE, "tokens per window", "T")
    )
    drop_rate: float = field(default=0.0, metadata=about("model", RATE, "dropout rate", "R"))

    steps: int | None = field(
        default=None,
        metadata=about("optimizer", SIZE, f"number of steps; default: {DEFAULT_STEPS}", "N"),
    )
    epochs: int | None = field(
        default=None,
        metadata=about(
            "optimizer", SIZE, "passes over the data, instead of a number of steps", "N"
        ),
    )
    learning_rate: float = field(
        default=1e-3, metadata=about("optimizer", POSITIVE, "peak learning rate", "X", old="lr")
    )
    warmup_steps: int = field(
        default=50, metadata=about("optimizer", SIZE, "steps of linear warmup", "N")
    )
    end_lr_fraction: float = field(
        default=0.1,
        metadata=about(
            "optimizer",
            FRACTION,
            "learning rate at the last step, as a fraction of the peak",
            "F",
            old="final_fraction",
        ),
    )
    weight_decay: float = field(
        default=0.1,
        metadata=about("optimizer", NONNEGATIVE, "weight decay, applied to matrices only", "X"),
    )
    beta2: float = field(
        default=0.99,
        metadata=about(
            "optimizer", RATE, "decay rate of the running mean of squared gradients", "X"
        ),
    )
    clip_norm: float = field(
        default=1.0,
        metadata=about("optimizer", POSITIVE, "maximum global norm of the gradients", "X"),
    )
    seed: int = field(
        default=0,
        metadata=about("optimizer", SEED, "random seed for weights, data order and dropout", "S"),
    )

    dtype: str = field(
        default="float32",
        metadata=about(
            "memory", one_of("float32", "bfloat16"), "compute dtype; parameters stay float32"
        ),
    )
    grad_accum_steps: int = field(
        default=1,
        metadata=about(
            "memory",
            SIZE,
            "split each batch into A micro-batches (gradient accumulation)",
            "A",
            old="accumulate",
        ),
    )
    logits_chunk: int | None = field(
        default=None,
        metadata=about(
            "memory",
            SIZE,
            "compute logits for N positions at a time to save memory",
            "N",
            old="chunk",
            changeable=True,
        ),
    )
    remat: Literal["elementwise", "blocks"] | None = field(
        default=None,
        metadata=about(
            "memory",
            one_of("elementwise", "blocks"),
            "recompute activations in the backward pass to save memory",
            old="recompute",
            changeable=True,
        ),
    )
    attention: Literal["auto", "reference", "cudnn"] = field(
        default="auto",
        metadata=about(
            "memory",
            one_of("auto", "reference", "cudnn"),
            "how attention is computed; auto is cudnn in bfloat16 on a CUDA device",
            changeable=True,
            later=True,
        ),
    )

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if value is not None or f.default is not None:
                self._set(f.name, setting_of(f.name).kind.check(f.name, value))
        for one, other in (("text", "data"), ("steps", "epochs")):
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise ValueError(f"{one} and {other} cannot both be given; leave one of them out")
        preset = PRESETS[self.preset].to_dict() if self.preset else DEFAULT_SIZES
        for name in DEFAULT_SIZES:
            if getattr(self, name) is None:
                self._set(name, preset[name])
            elif self.preset and getattr(self, name) != preset[name]:
                raise ValueError(
                    f"preset {self.preset} has {name}={preset[name]}, not {getattr(self, name)}; "
                    "leave one of them out"
                )
        if self.attention == "cudnn":
            if self.dtype == "float32":
                raise ValueError("attention cudnn needs 16-bit numbers; add dtype bfloat16")
            if self.drop_rate:
                raise ValueError("attention cudnn cannot drop values; leave drop_rate out")
        if self.epochs is None and self.steps is None:
            self._set("steps", DEFAULT_STEPS)
        self.model_config()

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def model_config(self) -> GPTConfig:
        """Return the config of the model: the preset's, or one of GPT-2's form."""
        if self.preset:
            return replace(PRESETS[self.preset], drop_rate=self.drop_rate)
        sizes = {name: getattr(self, name) for name in DEFAULT_SIZES}
        return GPTConfig(**sizes, drop_rate=self.drop_rate, qkv_bias=True, tie_weights=True)

    def to_dict(self) -> dict[str, Any]:
        """Return the values as settings.json stores them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Self:
        """Return the settings that `to_dict` returned, now or before settings were renamed.

        Raises:
            ValueError: if a setting is missing or has an invalid value.
        """
        values: dict[str, Any] = {}
        for f in fields(cls):
            old = setting_of(f.name).old
            stored = f.name if f.name in saved or old is None else old
            if stored not in saved and setting_of(f.name).later:
                values[f.name] = f.default
                continue
            values[f.name] = saved.get(stored)
            required = f.default is not None or f.name in DEFAULT_SIZES
            if stored not in saved or (values[f.name] is None and required):
                raise ValueError(f"{f.name} is missing")
        if values["preset"] is not None:  # the earlier format stored other sizes with it
            values |= dict.fromkeys(DEFAULT_SIZES)
        return cls(**values)

    def resumed_with(self, changes: Mapping[str, Any]) -> Self:
        """Return the settings of a run that began with `self` and resumes with `changes`.

        Raises:
            ValueError: if a value in `changes` differs from `self` and is not changeable.
        """
        wanted = type(self)(**changes)
        for name in changes:
            old, new = getattr(self, name), getattr(wanted, name)
            if new != old and not setting_of(name).changeable:
                raise ValueError(
                    f"the run was started with {name}={old!r}, not {new!r}; leave {name} out, or "
                    "train in another folder"
                )
        return replace(self, **{n: getattr(wanted, n) for n in changes if setting_of(n).changeable})


def setting_of(name: str) -> Setting:
    """Return the description of the setting `name`."""
    setting: Setting = TrainSettings.__dataclass_fields__[name].metadata["setting"]
    return setting


if TrainSettings.__doc__:  # it is None under python -OO
    TrainSettings.__doc__ += "\n    Attributes:\n" + "".join(
        f"        {f.name}: {setting_of(f.name).help}.\n" for f in fields(TrainSettings)
    )
