"""A process of a session: `session_process.py ADDRESS COUNT NUMBER MODE`. It prints its devices.

With the modes "computing" and "waiting" it then computes with the other processes, or waits for
them, until it is killed. With "rows" it prints which rows of a batch it reads.
"""

import json
import sys
import threading

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather

from obscura_jax.scale import rendezvous
from obscura_jax.scale.processes import distributed_session

rendezvous.EXIT_GRACE_S = 0.1


def show(value):
    print(json.dumps(value), flush=True)


def rows():
    from obscura_jax import GPT_CONFIG_124M, GPTConfig
    from obscura_jax.scale.mesh import make_mesh, parse_mesh
    from obscura_jax.scale.placement import MeshPlacement

    cfg = GPTConfig(**GPT_CONFIG_124M)
    meshes = [make_mesh(parse_mesh(text)) for text in ("data=4", "data=2,model=2", "model=4")]
    return [MeshPlacement(mesh=mesh, cfg=cfg).local_rows(8, 2) for mesh in meshes]


def main(mode, *where):
    with distributed_session(*where, timeout=100000):
        show([jax.process_index(), jax.process_count(), jax.device_count()])
        if mode == "rows":
            show(rows())
        while mode == "computing":
            process_allgather(np.zeros(1))
        if mode == "waiting":
            threading.Event().wait()


if __name__ == "__main__":
    mode, *where = sys.argv[1:]
    address, count, number = where or (None, None, None)
    main(mode, address, count and int(count), number and int(number))
