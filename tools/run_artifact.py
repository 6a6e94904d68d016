"""Print greedy tokens of an exported model with jax and NumPy: run_artifact.py FOLDER NEW ID..."""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

folder, new, ids = Path(sys.argv[1]), int(sys.argv[2]), [int(word) for word in sys.argv[3:]]
manifest = json.loads((folder / "manifest.json").read_text())
config = manifest["config"]
platform = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
data = (folder / "model.safetensors").read_bytes()
start = 8 + int.from_bytes(data[:8], "little")
weights = {}
for name, entry in json.loads(data[8:start]).items():
    if name != "__metadata__":
        dtype = {"F32": jnp.float32, "BF16": jnp.bfloat16}[entry["dtype"]]
        begin, end = (start + offset for offset in entry["data_offsets"])
        weights[name] = np.frombuffer(data[begin:end], dtype).reshape(entry["shape"])
prefill, decode = (
    jax.export.deserialize(bytearray((folder / f"{name}.{platform}.jaxexport").read_bytes()))
    for name in ("prefill", "decode")
)
heads, slots = config["n_heads"], len(ids) + new
cache = np.zeros((1, heads, slots, config["emb_dim"] // heads), manifest["cache_dtypes"][platform])
state: dict[str, Any] = {"count": np.int32(0)}
state |= {"made": np.zeros(1, np.int32), "done": np.zeros(1, bool)}
state |= {"tokens": np.zeros((1, new), np.int32), "logprobs": np.zeros((1, new), np.float32)}
state |= {name: [cache] * config["n_layers"] for name in ("keys", "values")}
request = {"lengths": np.array([len(ids)], np.int32), "temperature": np.zeros(1, np.float32)}
request |= {"top_k": np.full(1, config["vocab_size"], np.int32), "top_p": np.ones(1, np.float32)}
request |= {"min_p": np.zeros(1, np.float32), "keys": np.zeros((1, 2), np.uint32)}
request |= {"stop_ids": np.full((1, 1), -1, np.int32)}
blank = {**state, "broken": np.bool_(False)}
state = prefill.call(weights, np.array([ids], np.int32), request, blank)
print(*decode.call(weights, state, request, np.int32(new))["tokens"][0].tolist())
