"""Measuring speed and memory: generation, training steps and whole processes."""
