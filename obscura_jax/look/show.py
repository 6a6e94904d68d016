"""`show`: the page for a text, displayed in a notebook or written to a file."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from obscura_jax.atomic_files import require_path, write_atomically
from obscura_jax.look.viewer import Opened, Viewer
from obscura_jax.nn.model import GPTModel
from obscura_jax.text.tokenizers import gpt2_tokenizer, has_gpt2_size

_MARK = 'id="look-data"'  # only pages of this package contain it


@dataclass(frozen=True)
class Page:
    """A page about a text. Jupyter displays it; `save` writes it to a file.

    Attributes:
        html: the page, which needs no other file and no network.
        height: the height in pixels that Jupyter gives it.
    """

    html: str
    height: int = 800

    def _repr_html_(self) -> str:
        source = html.escape(self.html, quote=True)
        style = f"width: 100%; height: {self.height}px; border: 0"
        return f'<iframe sandbox="allow-scripts" style="{style}" srcdoc="{source}"></iframe>'

    def save(self, path: str | Path) -> None:
        """Write the page; a file at `path` is replaced if it is such a page.

        Raises:
            ValueError: if another file is there, or it cannot be written.
        """
        check_destination(path)
        target = require_path(path)
        text = self.html
        write_atomically(target, {target: lambda file: file.write_text(text, encoding="utf-8")})


def check_destination(path: str | Path) -> None:
    """Raise ValueError if there is something at `path` that is not a page of this package."""
    path = require_path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file, such as {path / 'look.html'}")
    if path.exists() and _MARK not in path.read_text(encoding="utf-8", errors="replace"):
        raise ValueError(f"{path} exists and is not a page of obscura look; name another file")


def show(
    model: GPTModel,
    params: Any,
    text: str | Sequence[int],
    *,
    tokenizer: Any = None,
    name: str = "model",
    other: tuple[GPTModel, Any] | None = None,
    other_name: str = "other",
    ablate: bool = True,
) -> Page:
    """Look into a model, or two, and return the page for a text.

    Args:
        model: the model.
        params: its parameters.
        text: the text, or its token ids; at most 256 tokens.
        tokenizer: the model's own, such as `load_tokenizer(source, model.cfg)`. By default GPT-2's,
            if the model has its number of tokens, padded or not.
        name: the name of the model on the page.
        other: another model and its parameters, to show the same text in both.
        other_name: its name on the page.
        ablate: whether to run the model without each of its parts, which takes most of the time.

    Raises:
        ValueError: for a text that is empty or too long, a model whose tokenizer is unknown, or two
            models of different vocabularies.
    """
    from obscura_jax.look.assemble import look_page

    if tokenizer is None:
        if not has_gpt2_size(model.cfg.vocab_size):
            raise ValueError(
                f"the tokenizer of a model of {model.cfg.vocab_size} tokens is unknown; pass "
                "tokenizer=load_tokenizer(source, model.cfg)"
            )
        tokenizer = gpt2_tokenizer()
    models = [Opened(name, model, params, tokenizer)]
    if other is not None:
        models.append(Opened(other_name, *other, tokenizer))
    viewer = Viewer(models)
    ids = viewer.ids(text) if isinstance(text, str) else viewer.check(text)
    return Page(look_page(viewer.data(ids, ablate=ablate)))
