"""Pairs of small models, the same model in PyTorch and in JAX, and planted faults."""
