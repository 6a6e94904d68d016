"""Looks inside a model while it is trained: a page in the run's folder with a slider over steps."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from obscura_jax.atomic_files import replace_text
from obscura_jax.nn.model import GPTModel

_MOST_FRAMES = 40  # when there are more, every second one is dropped


def check_looks(*, one_device: bool) -> None:
    """Raise ValueError if looks cannot be taken, which need one device."""
    if not one_device:
        raise ValueError(
            "--look-every needs a run on one device; leave it out, or leave out --mesh and "
            "--distributed"
        )


@dataclass(frozen=True)
class LookWriter:
    """Writes the page of a run: all views for the newest look, and a frame for each look.

    Attributes:
        path: the page.
        model: the model.
        ids: the token ids of the text to look at.
        tokenizer: an object with `decode`.
        warn: receives a message about a look that fails, which does not end the run.
    """

    path: Path
    model: GPTModel
    ids: list[int]
    tokenizer: Any
    warn: Callable[[str], object]

    def add(self, step: int, params: Any) -> None:
        """Look at the model after `step` steps; frames of this step and later ones are replaced."""
        from obscura_jax.look.assemble import look_page
        from obscura_jax.look.page_data import FRAME
        from obscura_jax.look.viewer import Opened, Viewer

        try:
            viewer = Viewer([Opened(self.path.parent.name, self.model, params, self.tokenizer)])
            data = viewer.data(self.ids)
            (entry,) = data["models"]
            frames = [frame for frame in self._frames() if frame["step"] < step]
            while len(frames) >= _MOST_FRAMES:
                frames = frames[::2]
            newest = {"step": step, **{name: entry[name] for name in FRAME}}
            entry["frames"] = [*frames, newest]
            replace_text(self.path, look_page(data))
        except Exception as error:
            self.warn(f"no look inside the model: {error}")

    def _frames(self) -> list[dict[str, Any]]:
        """Return the frames of the page, if there is one about this text."""
        from obscura_jax.look.assemble import embedded_data
        from obscura_jax.look.page_data import VERSION

        if not self.path.exists():
            return []
        data = embedded_data(self.path.read_text("utf-8"))
        same_text = [token["id"] for token in data["tokens"]] == self.ids
        if data["version"] != VERSION or not same_text:
            return []
        frames: list[dict[str, Any]] = data["models"][0]["frames"]
        return frames
