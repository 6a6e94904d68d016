"""The GPT model (chapter 4): token ids (B, T) in, logits (B, T, V) out.

Names are used in three other places. Submodule names are the course's and become the paths of the
parameters. Reading intermediate values (`nn.intermediates`) and sharding activations
(`scale.mesh.ACTIVATIONS`) intercept calls by name: the submodules, `att.out_proj` for the context,
and the methods and modules in `intermediates.VALUE_NAMES`, which are `TransformerBlock`'s
`attention_sublayer`, and `GPTModel`'s `drop_emb` and `output_head`. So each of these must stay one
call with its name. tests/test_intermediates.py fails otherwise.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer
from numpy.typing import ArrayLike

from obscura_jax.nn.attention import AttentionFn, MultiHeadAttention, check_length
from obscura_jax.nn.containers import ConfiguredModule, ModuleList
from obscura_jax.nn.layers import (
    Dropout,
    Embedding,
    FeedForward,
    LayerNorm,
    dropout_key,
    fold_key,
)
from obscura_jax.nn.linear import Linear, at_least_float32, linear
from obscura_jax.nn.token_ids import validate_sequences, validate_token_ids


def token_and_position_embedding(
    tok_emb: Embedding,
    pos_emb: Embedding,
    ids: Integer[Array, "*batch t"],
    positions: Integer[Array, "*batch t"] | None = None,
) -> Float[Array, "*batch t d"]:
    """Return the token embeddings plus the position embeddings (chapter 2.8).

    `positions` defaults to 0, 1, ...
    """
    tokens = tok_emb(ids)
    if positions is None:
        positions = jnp.arange(ids.shape[-1], dtype=jnp.int32)
    else:
        size = pos_emb.num_embeddings
        positions = validate_token_ids(positions, size, name="position", table="context")
    return tokens + jnp.broadcast_to(pos_emb(positions), tokens.shape)


class TransformerBlock(ConfiguredModule):
    """Attention, then feed-forward, each with a layer norm before and a shortcut (chapter 4.5)."""

    def setup(self) -> None:
        cfg = self.cfg
        self.att = MultiHeadAttention(
            d_in=cfg.emb_dim,
            d_out=cfg.emb_dim,
            context_length=cfg.context_length,
            dropout=cfg.drop_rate,
            num_heads=cfg.n_heads,
            qkv_bias=cfg.qkv_bias,
        )
        self.ff = FeedForward(cfg)
        self.norm1 = LayerNorm(cfg.emb_dim, cfg.ln_eps)
        self.norm2 = LayerNorm(cfg.emb_dim, cfg.ln_eps)
        self.drop_shortcut = Dropout(cfg.drop_rate)

    def __call__(
        self,
        x: Float[Array, "*batch t d"],
        *,
        deterministic: bool = True,
        attention_fn: AttentionFn | None = None,
        key: Array | None = None,
    ) -> Float[Array, "*batch t d"]:
        """Return the output of the block; `attention_fn` and `key` as in `MultiHeadAttention`.

        Attention weights are dropped with `fold_in(key, 0)`, the outputs of attention and of the
        feed-forward layers with `fold_in(key, 1)` and `fold_in(key, 2)`.
        """
        key = dropout_key(self, self.cfg.drop_rate, deterministic, key)
        x = self.attention_sublayer(
            x, deterministic=deterministic, attention_fn=attention_fn, key=key
        )
        y = self.ff(self.norm2(x))
        return x + self.drop_shortcut(y, deterministic=deterministic, key=fold_key(key, 2))

    def attention_sublayer(
        self,
        x: Float[Array, "*batch t d"],
        *,
        deterministic: bool,
        attention_fn: AttentionFn | None,
        key: Array | None,
    ) -> Float[Array, "*batch t d"]:
        """Return the residual stream after attention, before the feed-forward layers."""
        y = self.norm1(x)
        y = self.att(
            y, deterministic=deterministic, attention_fn=attention_fn, key=fold_key(key, 0)
        )
        return x + self.drop_shortcut(y, deterministic=deterministic, key=fold_key(key, 1))


RematPolicy = Literal["elementwise", "blocks"]
REMAT_POLICIES = {
    "elementwise": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "blocks": jax.checkpoint_policies.nothing_saveable,
}


class GPTModel(ConfiguredModule):
    """A decoder with GPT-2's architecture (Radford et al. 2019; chapter 4.6).

    Attributes:
        cfg: a `GPTConfig`, or a dictionary such as `GPT_CONFIG_124M`.
    """

    def setup(self) -> None:
        cfg = self.cfg
        self.tok_emb = Embedding(cfg.vocab_size, cfg.emb_dim)
        self.pos_emb = Embedding(cfg.context_length, cfg.emb_dim)
        self.drop_emb = Dropout(cfg.drop_rate)
        self.trf_blocks = ModuleList((TransformerBlock(cfg),) * cfg.n_layers)
        self.final_norm = LayerNorm(cfg.emb_dim, cfg.ln_eps)
        if not cfg.tie_weights:
            self.out_head = Linear(cfg.emb_dim, cfg.vocab_size, use_bias=False)

    def __call__(
        self,
        ids: ArrayLike,
        *,
        deterministic: bool = True,
        positions: Integer[Array, "*batch t"] | None = None,
        attention_fn: Callable[..., Array] | None = None,
        logits_at: Integer[Array, " b"] | None = None,
    ) -> Float[Array, "*batch s v"]:
        """Return the logits for the token after each position, in at least float32.

        Args:
            ids: token ids in [0, V), (..., T): an array of any integer type, or lists; at most
                `context_length` positions. Inside jit their range cannot be checked, and JAX
                narrows 64-bit arguments to 32 bits; there an id outside [0, V) gives NaN.
            deterministic: False drops values at `drop_rate`. The key is derived from the one passed
                to `apply` as `rngs={"dropout": key}`: block n uses `fold_in(key, n)`, the
                embeddings use `fold_in(key, n_layers)`.
            positions: the position of each token; default: 0, 1, 2, ...
            attention_fn: called as `attention_fn(block, queries, keys, values)` in place of causal
                attention; `block` is the block index. The key-value cache is implemented this way.
            logits_at: for ids (B, T), the index of the one position per row whose logits are
                needed, (B,). Returns (B, 1, V) and skips the output head at the other positions.

        Raises:
            ValueError: for ids outside the vocabulary, too many positions, or dropout without a
                key.
        """
        x = self.hidden_states(
            ids, deterministic=deterministic, positions=positions, attention_fn=attention_fn
        )
        if logits_at is not None:
            x = jnp.take_along_axis(x, logits_at[:, None, None], axis=-2)
        return self.output_head(x)

    def hidden_states(
        self,
        ids: ArrayLike,
        *,
        deterministic: bool = True,
        positions: Integer[Array, "*batch t"] | None = None,
        attention_fn: Callable[..., Array] | None = None,
        remat: RematPolicy | None = None,
    ) -> Float[Array, "*batch t d"]:
        """Return the output of the last block.

        Takes the arguments of `__call__`, except `logits_at`. Apply `output_head` to get logits, a
        few at a time to save memory. Call this method as
        `model.apply({"params": params}, ids, method="hidden_states")`. To save memory in the
        backward pass, `remat` selects what it computes again: "elementwise" stores only the
        products with weights, "blocks" only the input of each block.
        """
        cfg = self.cfg
        key = dropout_key(self, cfg.drop_rate, deterministic)
        x = self.embeddings(
            ids,
            deterministic=deterministic,
            positions=positions,
            key=fold_key(key, cfg.n_layers),
        )
        for number, block in enumerate(self.trf_blocks):
            attend_here = partial(attention_fn, number) if attention_fn else None
            own_key = fold_key(key, number)
            run: Any = TransformerBlock.__call__
            run = partial(run, deterministic=deterministic, attention_fn=attend_here, key=own_key)
            if remat is not None:
                run = nn.remat(run, policy=REMAT_POLICIES[remat])
            x = run(block, x)
        return x

    def embeddings(
        self,
        ids: ArrayLike,
        *,
        deterministic: bool = True,
        positions: Integer[Array, "*batch t"] | None = None,
        key: Array | None = None,
    ) -> Float[Array, "*batch t d"]:
        """Return the input of the first block; `key` as in `dropout_key`."""
        ids = validate_sequences(ids, self.cfg.vocab_size)
        check_length(ids.shape[-1], self.cfg.context_length)
        x = token_and_position_embedding(self.tok_emb, self.pos_emb, ids, positions)
        return self.drop_emb(x, deterministic=deterministic, key=key)

    def output_head(self, x: Float[Array, "*batch t d"]) -> Float[Array, "*batch t v"]:
        """Apply the final layer norm to hidden states and return their logits."""
        x = self.final_norm(x)
        head = self.tok_emb if self.cfg.tie_weights else self.out_head
        return linear(x, head.weight, dtype=at_least_float32(x.dtype))
