"""Several CPU devices get more threads than devices, as collectives need."""

import os

import pytest

from obscura_jax.scale.cpu_devices import add_threads_for_cpu_devices

FORCE = "--xla_force_host_platform_device_count="


@pytest.mark.parametrize(
    ("environment", "threads"),
    [
        ({"JAX_NUM_CPU_DEVICES": "8"}, "32"),
        ({"XLA_FLAGS": f"--xla_dump_to=x {FORCE}2 {FORCE}4"}, "16"),  # the last one counts
        ({"JAX_NUM_CPU_DEVICES": "8", "PJRT_NPROC": "9"}, "9"),
        ({"JAX_NUM_CPU_DEVICES": "1"}, None),
        ({"JAX_NUM_CPU_DEVICES": "many"}, None),
        ({}, None),
    ],
)
def test_several_devices_get_four_threads_each(monkeypatch, environment, threads):
    own = {"PATH": "x"} | environment
    monkeypatch.setattr(os, "environ", own)
    add_threads_for_cpu_devices()
    assert own.get("PJRT_NPROC") == threads
