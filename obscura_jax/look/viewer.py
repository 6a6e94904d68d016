"""A viewer: one model, or two side by side, that turn a text into the data of a page."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from obscura_jax.look.inside_model import ablate_parts, inside
from obscura_jax.look.page_data import Looked, ablation_data, page_data
from obscura_jax.look.token_text import TokenText
from obscura_jax.nn.model import GPTModel
from obscura_jax.text.any_tokenizer import token_ids

MOST_TOKENS = 256  # of a text on a page: attention grows with their square


@dataclass(frozen=True)
class Opened:
    """A model to look into.

    Attributes:
        name: a name for the reader.
        model: the model.
        params: its parameters.
        tokenizer: an object with `encode` and `decode`.
    """

    name: str
    model: GPTModel
    params: Any
    tokenizer: Any

    @property
    def dtype(self) -> str:
        """The type of its parameters."""
        return str(jax.tree.leaves(self.params)[0].dtype)


@dataclass(frozen=True)
class Viewer:
    """One model, or two that see the same text.

    Raises:
        ValueError: if two models do not have the same number of tokens.
    """

    models: Sequence[Opened]

    def __post_init__(self) -> None:
        first, *others = self.models
        for other in others:
            sizes = [each.model.cfg.vocab_size for each in (first, other)]
            if sizes[0] != sizes[1]:
                raise ValueError(
                    f"{first.name} has {sizes[0]} tokens and {other.name} has {sizes[1]}; give "
                    "two models with the same tokens"
                )

    def ids(self, text: str) -> list[int]:
        """Return the token ids of a text.

        Raises:
            ValueError: if it is empty, or has other tokens in the other model; see also `check`.
        """
        first, *others = self.models
        if not text:
            raise ValueError("the text is empty; give at least one character")
        ids = token_ids(first.tokenizer, text)
        for other in others:
            if token_ids(other.tokenizer, text) != ids:
                raise ValueError(
                    f"{first.name} and {other.name} divide this text into different tokens; "
                    "give two models with the same tokenizer"
                )
        return self.check(ids)

    def check(self, ids: Sequence[int]) -> list[int]:
        """Return the ids; ValueError if there are none, or more than the page or a model holds."""
        if len(ids) == 0:
            raise ValueError("the text has no tokens; give at least one")
        if len(ids) > MOST_TOKENS:
            raise ValueError(
                f"the text has {len(ids)} tokens, and a page shows at most {MOST_TOKENS}; "
                "shorten it"
            )
        for each in self.models:
            context = each.model.cfg.context_length
            if len(ids) > context:
                raise ValueError(
                    f"the text has {len(ids)} tokens, and {each.name} reads at most {context}; "
                    "shorten it"
                )
        return list(ids)

    def data(self, ids: Sequence[int], *, ablate: bool = True) -> dict[str, Any]:
        """Return the data of a page for checked ids, with or without ablations."""
        tokenizer = self.models[0].tokenizer

        def looked(each: Opened) -> Looked:
            found = inside(each.model, each.params, ids, ablate=ablate)
            return Looked(each.name, each.model.cfg, each.dtype, found)

        return page_data([looked(each) for each in self.models], TokenText(tokenizer))

    def ablations(
        self, ids: Sequence[int], after_block: Callable[[], object] = lambda: None
    ) -> list[dict[str, Any] | None]:
        """Return the entry "ablation" of each model; `after_block` as in `ablate_parts`."""
        models = self.models
        found = [ablate_parts(each.model, each.params, ids, after_block) for each in models]
        return [ablation_data(each) for each in found]
