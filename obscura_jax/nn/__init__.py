"""The model, from token ids to logits. Only this folder imports flax.linen.

Axes in shapes and names: B batch, T query positions (time), S key positions, D width (emb_dim),
H heads, K width of a head (D / H), F feed-forward width (4 D), V vocabulary, C context length.

Parameters are a nested dictionary whose paths are the names in the course's PyTorch state dict.
Matrices are stored (out, in), as torch stores them.
"""
