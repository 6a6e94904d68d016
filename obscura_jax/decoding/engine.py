"""`Generator`: a model prepared once for inference, and asked many times."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from obscura_jax.checks import check_size
from obscura_jax.decoding import invariant
from obscura_jax.decoding.alternatives import reported
from obscura_jax.decoding.cache import NO_CACHE, bucket_length
from obscura_jax.decoding.prefix import Prefix
from obscura_jax.decoding.prepared import WeightForm, prepare_params
from obscura_jax.decoding.programs import DEFAULT_PROGRAMS, GenerationPrograms
from obscura_jax.decoding.request import GenerationOptions, Plan, pad_sequences, plan_generation
from obscura_jax.decoding.results import GenerateOutput, Stats
from obscura_jax.decoding.run import run_plan
from obscura_jax.decoding.sampling import GREEDY, Sampling
from obscura_jax.decoding.score import Score, score_ids
from obscura_jax.decoding.state import State, check_finite
from obscura_jax.nn.model import GPTModel
from obscura_jax.text.tokenizers import Tokenizer

_TOKENS_PER_CHUNK = 256  # Python notices Ctrl-C between chunks


class Generator:
    """A model whose weights are laid out once, to generate and score many texts.

    Attributes:
        model: the model.
        params: its parameters in the form that the programs read.
        options: the options of a call that gives no others.
        batch_invariant: whether a row has the same bits in any company.
    """

    def __init__(
        self,
        model: GPTModel,
        params: Any,
        *,
        dtype: DTypeLike | None = None,
        weights: WeightForm = "auto",
        batch_invariant: bool = False,
        sampling: Sampling = GREEDY,
        programs: GenerationPrograms = DEFAULT_PROGRAMS,
    ) -> None:
        """Prepare a model.

        Args:
            model: the model.
            params: its parameters, as they are trained and saved.
            dtype: type to compute in, float32 or bfloat16; by default the type of `params`. Logits
                and softmax are at least float32.
            weights: "auto" stores weights as the device reads them fastest, "as-given" leaves them,
                "int8" rounds them to 8 bits; see `decoding.prepared.prepare_params`.
            batch_invariant: give every row the same tokens and log-probabilities, bit for bit,
                alone and in any batch. Every step then computes as many rows as a full tile.
            sampling: sampling settings of calls that give no others.
            programs: the programs to run: by default for one device.

        Raises:
            ValueError: for an unknown type or form of weights, weights that cannot be rounded, or
                `batch_invariant` with programs that cannot keep it.
        """
        if batch_invariant and programs is not DEFAULT_PROGRAMS:
            raise ValueError(
                "batch_invariant runs programs of its own on one device; leave it out, or programs="
            )
        if programs is not DEFAULT_PROGRAMS:
            if weights not in ("auto", "as-given"):
                raise ValueError(
                    f"weights={weights!r} needs the programs for one device; leave it out, or "
                    "programs="
                )
            weights = "as-given"
        self.model = model
        self.params = prepare_params(params, dtype, weights)
        self.options = GenerationOptions(sampling)
        self.batch_invariant = batch_invariant
        self._programs = programs

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int | None = None,
        **options: Any,
    ) -> GenerateOutput:
        """Continue each prompt.

        Args:
            prompts: one list of token ids per row; lengths may differ.
            max_new_tokens: maximum number of new tokens per row. By default 64, or fewer if less
                room is left in the context after the longest prompt.
            **options: fields of `GenerationOptions`, in place of the engine's.

        Raises:
            ValueError: for whatever `decoding.generate.generate` rejects.
        """
        before, began = self.n_compilations(), time.perf_counter()
        plan = self._plan(prompts, max_new_tokens, options)
        states = self._run(plan, _TOKENS_PER_CHUNK)
        state = next(states)
        jax.block_until_ready(state.count)
        prefilled = time.perf_counter()
        for state in states:  # noqa: B007 - the last one is used below
            pass
        state = jax.device_get(replace(state, cache=NO_CACHE, prompts=None))
        ended = time.perf_counter()
        check_finite(state.nonfinite)

        def kept(table: Any) -> list[list[Any]]:
            return [row[:n].tolist() for row, n in zip(table, state.n_kept, strict=True)]

        top_logprobs = None
        if state.alternatives is not None:
            counts = zip(state.n_kept, plan.top_logprobs, strict=True)
            top_logprobs = [
                reported(state.alternatives, row, length, count)
                for row, (length, count) in enumerate(counts)
            ]
        return GenerateOutput(
            tokens=kept(state.tokens),
            logprobs=kept(state.logprobs),
            finish_reasons=["stop" if done else "length" for done in state.done],
            stats=Stats(
                prompt_tokens=sum(map(len, prompts)),
                new_tokens=int(state.n_kept.sum()),
                prefill_seconds=prefilled - began,
                decode_seconds=ended - prefilled,
                n_compilations=self.n_compilations() - before,
            ),
            top_logprobs=top_logprobs,
        )

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int | None = None,
        *,
        tokens_per_chunk: int = 8,
        **options: Any,
    ) -> Iterator[list[list[int]]]:
        """Yield the tokens of `generate` while they are generated; see `decoding.stream.stream`."""
        if options.get("top_logprobs") is not None:
            raise ValueError("a stream has no top_logprobs; leave it out, or use generate")
        tokens_per_chunk = check_size("tokens_per_chunk", tokens_per_chunk)
        return _new_ids(self._run(self._plan(prompts, max_new_tokens, options), tokens_per_chunk))

    def score(
        self, texts: Sequence[str | Sequence[int]], *, tokenizer: Tokenizer | None = None
    ) -> Score:
        """Return the log-probability of every token of every text; see `decoding.score.score`."""
        run = invariant.log_probabilities if self.batch_invariant else None
        return score_ids(self.model, self.params, texts, tokenizer, run)

    def prefix(self, ids: Sequence[int]) -> Prefix:
        """Read the start that prompts share, once, for `generate(..., prefix=prefix)`.

        Raises:
            ValueError: if there are no ids, ids outside the vocabulary, or no room after them.
        """
        cfg = self.model.cfg
        padded, (length,) = pad_sequences([ids], cfg)
        if length >= cfg.context_length:
            raise ValueError(
                f"a prefix of {length} tokens leaves no room in the context of "
                f"{cfg.context_length} tokens; shorten it"
            )
        known = tuple(padded[0, :length].tolist())
        if self.batch_invariant:
            cache = invariant.read_prefix(self.model, self.params, known)
        else:
            slots = bucket_length(length, cfg.context_length)
            read = self._programs.read_prefix
            cache = read(self.model, self.params, jnp.asarray(padded), slots)
        return Prefix(known, cache, self)

    def n_compilations(self) -> int:
        """Return the number of programs that this process has compiled for generation."""
        own = invariant.n_compilations() if self.batch_invariant else 0
        return self._programs.n_compilations() + own

    def _plan(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int | None,
        changes: dict[str, Any],
    ) -> Plan:
        """Check a call with some of the options changed."""
        options = replace(self.options, **changes)
        if options.prefix is not None and options.prefix.engine is not self:
            raise ValueError("the prefix is of another Generator; make it with this one's prefix()")
        names = options.controls.used() + ["top_logprobs"] * (options.top_logprobs is not None)
        if names and not self._programs.have_controls:
            raise ValueError(
                f"an exported model has no {names[0]}; leave it out, or load the model that was "
                "exported"
            )
        return plan_generation(self.model.cfg, prompts, max_new_tokens, options)

    def _run(self, plan: Plan, tokens_per_chunk: int) -> Iterator[State]:
        """Return the iterator of the states of a call; see `run.run_plan`."""
        if self.batch_invariant:
            return invariant.run_plan(self.model, self.params, plan, tokens_per_chunk)
        return run_plan(self.model, self.params, plan, self._programs, tokens_per_chunk)


def _new_ids(states: Iterator[State]) -> Iterator[list[list[int]]]:
    returned: list[int] = []
    for state in states:
        nonfinite, n_kept, tokens = jax.device_get((state.nonfinite, state.n_kept, state.tokens))
        check_finite(nonfinite)
        returned = returned or [0] * len(n_kept)
        new = [row[a:b].tolist() for row, a, b in zip(tokens, returned, n_kept, strict=True)]
        returned = [old + len(ids) for old, ids in zip(returned, new, strict=True)]
        yield new  # copies: the buffers are reused
