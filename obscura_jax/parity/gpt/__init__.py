"""Compare a PyTorch model with the JAX model of the same weights, and explain differences."""
