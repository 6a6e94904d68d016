"""Tables of PyTorch's operations for the tracer: which move entries, and what fused ones do.

A fused kernel, such as a layer norm, is traced as the elementary operations that it consists of.
"""

from functools import cache
from typing import Any


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Operations that move, copy, select or repeat entries.
LAYOUT = _words(
    "to view _unsafe_view reshape transpose permute t expand unsqueeze squeeze alias detach "
    "clone _to_copy contiguous select slice split split_with_sizes unbind cat copy_ "
    "lift_fresh lift_fresh_copy unfold as_strided index unsafe_split unsafe_chunk chunk stack "
    "view_as_real view_as_complex _reshape_alias repeat constant_pad_nd slice_scatter "
    "select_scatter flip roll index_select gather copy narrow written movedim swapaxes "
    "broadcast_to embedding diagonal _unsafe_index repeat_interleave masked_select take "
    "take_along_dim index_put reflection_pad1d reflection_pad2d replication_pad1d "
    "replication_pad2d pixel_shuffle im2col real imag resolve_conj"
)
# Those that keep every entry exactly once if the size stays the same.
PERMUTES = _words(
    "to view _unsafe_view reshape transpose permute t unsqueeze squeeze alias detach clone "
    "_to_copy contiguous lift_fresh lift_fresh_copy _reshape_alias flip roll movedim swapaxes "
    "expand view_as_real view_as_complex pixel_shuffle resolve_conj"
)
RANDOM = _words(
    "bernoulli bernoulli_ native_dropout rand rand_like randn randn_like randint randint_like "
    "normal normal_ uniform uniform_ randperm multinomial exponential_ geometric_ random_ "
    "rrelu_with_noise _fused_dropout"
)
_DECOMPOSED = _words(
    "native_layer_norm native_group_norm _native_batch_norm_legit native_batch_norm "
    "_native_batch_norm_legit_no_training cudnn_batch_norm gelu silu hardswish hardsigmoid "
    "leaky_relu elu softplus _softmax _log_softmax addmm addmv baddbmm addbmm addcmul addcdiv "
    "_fused_rms_norm _safe_softmax mish glu native_dropout var_mean rsub log_sigmoid_forward "
    "hardtanh celu selu logsumexp std_mean smooth_l1_loss huber_loss nll_loss_forward "
    "mse_loss binary_cross_entropy native_layer_norm_backward native_group_norm_backward "
    "native_batch_norm_backward gelu_backward silu_backward hardswish_backward elu_backward "
    "leaky_relu_backward softplus_backward _softmax_backward_data _log_softmax_backward_data "
    "tanh_backward sigmoid_backward threshold_backward mish_backward glu_backward "
    "hardsigmoid_backward log_sigmoid_backward hardtanh_backward native_dropout_backward "
    "embedding_dense_backward nll_loss_backward mse_loss_backward _fused_rms_norm_backward"
)


@cache
def decompositions() -> dict[Any, Any]:
    """Return PyTorch's own decomposition of each fused operation."""
    import torch
    from torch._decomp import get_decompositions

    aten = torch.ops.aten
    return dict(get_decompositions([getattr(aten, n) for n in _DECOMPOSED if hasattr(aten, n)]))


def attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Compute scaled dot-product attention step by step (PyTorch's documentation)."""
    import torch

    factor = query.shape[-1] ** -0.5 if scale is None else scale
    if query.ndim >= 3 and query.shape[-3] != key.shape[-3]:
        groups = query.shape[-3] // key.shape[-3]
        key, value = (x.repeat_interleave(groups, -3) for x in (key, value))
    scores = torch.matmul(query, key.transpose(-1, -2)) * factor
    if is_causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(seen.logical_not(), -float("inf"))
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(attn_mask.logical_not(), -float("inf"))
        else:
            scores = scores + attn_mask
    weights = torch.ops.aten._safe_softmax(scores, -1)
    if dropout_p:
        weights = torch.dropout(weights, dropout_p, True)
    return torch.matmul(weights, value)


def unfused(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what a fused attention or convolution computes, or None if it is neither.

    Args:
        name: name of the operation.
        args: its arguments.
        kwargs: its keyword arguments.
    """
    import torch

    if name == "scaled_dot_product_attention":
        return attention(*args, **kwargs)
    if name == "_scaled_dot_product_flash_attention_for_cpu":
        # (query, key, value, dropout_p, is_causal, *, attn_mask, scale)
        query, key, value, *rest = args
        dropout = rest[0] if rest else kwargs.get("dropout_p", 0.0)
        causal = rest[1] if len(rest) > 1 else kwargs.get("is_causal", False)
        mask, scale = kwargs.get("attn_mask"), kwargs.get("scale")
        out = attention(query, key, value, mask, dropout, causal, scale=scale)
        return out, out[..., 0]
    if name in ("_scaled_dot_product_attention_math", "_scaled_dot_product_attention_math_for_cpu"):
        # (query, key, value, attn_mask, dropout_p, is_causal, dropout_mask, *, scale, enable_gqa)
        more = {k: kwargs[k] for k in ("scale", "enable_gqa") if k in kwargs}
        out = attention(*args[:6], **more)
        return out, out[..., 0]
    if name == "convolution" and args[2] is not None:
        images, weight, bias, *rest = args
        out = torch.ops.aten.convolution.default(images, weight, None, *rest, **kwargs)
        return out + bias.view(-1, *[1] * (out.ndim - 2))
    if name == "convolution_backward" and args[-1][2]:
        out, images, weight, _, *rest, mask = args
        both = torch.ops.aten.convolution_backward.default(
            out, images, weight, None, *rest, [mask[0], mask[1], False], **kwargs
        )
        return both[0], both[1], out.sum([0, *range(2, out.ndim)])
    return None
