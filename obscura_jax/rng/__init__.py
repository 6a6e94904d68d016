"""Other frameworks' random numbers, in NumPy: JAX's, PyTorch's, and draws that both share."""
