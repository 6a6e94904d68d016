"""Tables of JAX's primitives for the tracer: which move entries, and which draw numbers."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Operations that move, copy, select or repeat entries.
LAYOUT = _words(
    "reshape transpose broadcast_in_dim squeeze expand_dims convert_element_type copy slice "
    "split concatenate dynamic_slice gather rev copy_p optimization_barrier "
    "dynamic_update_slice pad stack reduce_precision sharding_constraint mesh_cast reshard "
    "tile real imag complex stop_gradient pvary tie_in device_put scan_slice scan_stack scatter"
)
# Those that keep every entry exactly once if the size stays the same.
PERMUTES = _words(
    "reshape transpose squeeze expand_dims convert_element_type copy rev copy_p "
    "optimization_barrier reduce_precision sharding_constraint mesh_cast reshard "
    "stop_gradient pvary tie_in device_put broadcast_in_dim"
)
# Calls that are replaced by the body of the function.
INLINED = _words(
    "pjit jit closed_call core_call custom_jvp_call custom_vjp_call custom_vjp_call_jaxpr "
    "remat checkpoint remat2 custom_lin"
)
RANDOM = _words("random_bits threefry2x32 rng_bit_generator rng_uniform random_gamma random_clone")
