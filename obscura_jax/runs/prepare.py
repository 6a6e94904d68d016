"""From the settings of a training run to the run and its validation batches."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from obscura_jax.config import GPTConfig
from obscura_jax.runs.folder import TOKENS
from obscura_jax.runs.settings import TrainSettings
from obscura_jax.text.corpus import finished_token_count, tokenize_to_file, train_token_count
from obscura_jax.text.loader import DataLoader
from obscura_jax.text.token_file import TokenFile

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from obscura_jax.training.run import TrainRun


@dataclass(frozen=True)
class TextSource:
    """Text for a run whose settings name none, and a report on reading any text.

    Attributes:
        stream: UTF-8 bytes, if there are any.
        on_progress: called with the bytes tokenized so far and the bytes in total.
    """

    stream: BinaryIO | None = None
    on_progress: Callable[[int, int], object] = lambda done, total: None


def prepare(
    folder: Path, settings: TrainSettings, source: TextSource, mesh: "Mesh | None"
) -> tuple["TrainRun", DataLoader]:
    """Tokenize the text into `folder` if needed; return the run and its validation batches.

    Raises:
        ValueError: if the text is missing or too short, or if the batch does not split over the
            micro-batches and the mesh.
    """
    from obscura_jax.nn.model import GPTModel
    from obscura_jax.training.optimizer import OptimizerConfig
    from obscura_jax.training.options import StepOptions
    from obscura_jax.training.run import TrainRun

    cfg = settings.model_config()
    train_windows, val_windows = _windows(folder, settings, cfg, source)
    batch_size = min(settings.batch_size, len(train_windows))
    loader = DataLoader(train_windows, batch_size, seed=settings.seed)
    steps = settings.steps or len(loader) * (settings.epochs or 0)
    warmup_steps = min(settings.warmup_steps, steps)
    run = TrainRun(
        model=GPTModel(cfg),
        optimizer_config=OptimizerConfig(
            learning_rate=settings.learning_rate,
            warmup_steps=warmup_steps,
            decay_steps=steps - warmup_steps,
            end_lr_fraction=settings.end_lr_fraction,
            weight_decay=settings.weight_decay,
            decay_1d_params=False,
            beta2=settings.beta2,
            clip_norm=settings.clip_norm,
        ),
        loader=loader,
        steps=steps,
        seed=settings.seed,
        options=StepOptions(
            grad_accum_steps=settings.grad_accum_steps,
            compute_dtype=settings.dtype,
            logits_chunk=settings.logits_chunk,
            remat=settings.remat,
            attention=settings.attention,
        ),
    )
    rows = min(settings.batch_size, len(val_windows))
    if mesh is not None:
        from obscura_jax.scale.mesh import check_batch, largest_divisible_batch

        check_batch(batch_size // settings.grad_accum_steps, mesh, "a batch or micro-batch")
        rows = largest_divisible_batch(rows, mesh, "the validation text")
    return run, DataLoader(val_windows, rows, shuffle=False)


def _windows(
    folder: Path, settings: TrainSettings, cfg: GPTConfig, source: TextSource
) -> tuple[TokenFile, TokenFile]:
    """Return the windows for training and for validation."""
    vocab_size, length = cfg.vocab_size, cfg.context_length

    def windows(path: Path, first: int = 0, last: int | None = None) -> TokenFile:
        stride = settings.stride or length
        return TokenFile(path, length, stride, first=first, last=last, vocab_size=vocab_size)

    if settings.data is not None:
        data = Path(settings.data)
        return windows(data / "train.bin"), windows(data / "val.bin")
    path = folder / TOKENS
    count = finished_token_count(path)
    if count is None:
        text = settings.text or source.stream
        if text is None:
            raise ValueError("there is no text to train on; name text files, in a new folder")
        count = tokenize_to_file(text, path, vocab_size=vocab_size, progress=source.on_progress)
    split = train_token_count(count, settings.val_fraction, length)
    return windows(path, last=split), windows(path, first=split)
