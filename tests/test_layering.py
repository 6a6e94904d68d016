"""Imports run down one list, Linen stays in one folder, and extras are imported in functions."""

import ast
import sys
from pathlib import Path

import pytest

import obscura_jax
from tests.support import processes

PACKAGE = Path(obscura_jax.__file__).parent
# From the ground up: each floor imports only floors before it.
FLOORS = [
    "checks",
    "atomic_files",
    "safetensors_files",
    "config",
    "arguments",
    "extras",
    "interrupts",
    "compile_cache",
    "processor",
    "plots",
    "text",
    "nn",
    "rng",
    "decoding",
    "training",
    "exercises",
    "interop",
    "parity",
    "scale",
    "export",
    "look",
    "runs",
    "bench",
    "cli",
]
# Optional packages, and one that only pages need.
EXTRAS = {
    "torch",
    "matplotlib",
    "huggingface_hub",
    "transformers",
    "tokenizers",
    "libtpu",
    "jax_cuda12_plugin",
    "ctranslate2",
    "orbax",
    "jinja2",
    "starlette",
    "uvicorn",
    "argcomplete",
}
OF_MODELS = {"config", "text", "nn", "rng", "decoding", "training", "interop"}
FACE = {"__init__", "__main__"}  # these re-export names and start the command
# A PyTorch module, which is imported lazily like torch.
TORCH = Path("parity/gpt/torch_reference.py")


def imports_of(source: str) -> list[tuple[str, bool]]:
    """Return every dotted name that a file imports, and whether that happens at its own import."""
    tree = ast.parse(source)
    lazy = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(name.name, id(node) not in lazy) for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = (f"{node.module}.{name.name}" for name in node.names)
            found += [(name, id(node) not in lazy) for name in names]
    return found


def broken_rules(path: Path, source: str) -> list[str]:
    """Return the violations in the file at `path`, which is relative to the package."""
    here = path.parts[0].removesuffix(".py")
    broken = []
    for name, at_import in imports_of(source):
        top, floor, *_ = [*name.split("."), ""]
        if top == "obscura_jax" and here not in FACE and floor != "__version__":
            if floor not in FLOORS:
                broken.append(f"{path} imports {name} from the face of the package")
            elif FLOORS.index(floor) > FLOORS.index(here):
                broken.append(f"{path} imports {name}, which is above it")
        engine = here == "parity" and path.parts[1:2] != ("gpt",)
        if engine and top == "obscura_jax" and (floor in OF_MODELS or ".parity.gpt" in name):
            broken.append(f"{path} imports {name}, but knows no model")
        if (top, floor) == ("flax", "linen") and here != "nn":
            broken.append(f"{path} imports flax.linen")
        if at_import and "obscura_jax.parity.gpt.torch_reference" in name:
            broken.append(f"{path} imports {name} at its own import")
        if top in EXTRAS and at_import and path != TORCH:
            broken.append(f"{path} imports {top} at its own import")
        if here in ("atomic_files", "config", "extras", "text") and top in ("jax", "flax", "optax"):
            broken.append(f"{path} imports {top}")
    return broken


def test_every_file_keeps_the_rules():
    files = {path.relative_to(PACKAGE): path.read_text() for path in PACKAGE.rglob("*.py")}
    assert len(files) > 90
    assert [line for path, source in files.items() for line in broken_rules(path, source)] == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("nn/model.py", "from obscura_jax.decoding.simple import generate_text_simple"),
        ("nn/model.py", "def f():\n    import obscura_jax.cli.generate"),
        ("nn/model.py", "from obscura_jax import decoding"),
        ("nn/model.py", "from obscura_jax import load_model"),
        ("text/dataset.py", "from obscura_jax import GPTModel"),
        ("text/dataset.py", "def f():\n    import obscura_jax"),
        ("decoding/loop.py", "import flax.linen as nn"),
        ("decoding/loop.py", "from flax import linen as nn"),
        ("decoding/loop.py", "from flax.linen import Module"),
        ("interop/checkpoint.py", "import torch"),
        ("parity/gpt/compare.py", "from obscura_jax.parity.gpt import torch_reference"),
        ("text/dataset.py", "import jax.numpy as jnp"),
        ("parity/align.py", "from obscura_jax.nn.model import GPTModel"),
        ("parity/align.py", "def f():\n    from obscura_jax.parity.gpt import lab"),
    ],
)
def test_a_broken_rule_is_detected(path, source):
    assert broken_rules(Path(path), source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("interop/checkpoint.py", "def f():\n    import torch"),
        ("nn/model.py", "from flax import linen as nn"),
        ("cli/__main__.py", "from obscura_jax import __version__"),
        ("cli/__main__.py", "from obscura_jax.cli import convert"),
        ("__main__.py", "from obscura_jax import load_model"),
    ],
)
def test_allowed_imports_are_not_reported(path, source):
    assert not broken_rules(Path(path), source)


def wrong_direction(path: Path, source: str) -> list[str]:
    """Return the imports of a file in the repository that only another folder may have."""
    folder = path.parts[0]
    forbidden = {
        "obscura_jax": ("tests", "tools", "docs"),
        "docs": ("tests", "tools"),
        "tools": ("tests", "obscura_jax.cli"),
        "tests": ("tools",),
    }[folder]
    return [
        f"{path} imports {name}"
        for name, _ in imports_of(source)
        if any(f"{name}.".startswith(f"{other}.") for other in forbidden)
    ]


def test_only_tests_import_tests_and_nothing_imports_tools():
    folders = ("obscura_jax", "docs", "tools", "tests")
    files = [path for folder in folders for path in (PACKAGE.parent / folder).rglob("*.py")]
    assert len(files) > 150
    wrong = [wrong_direction(path.relative_to(PACKAGE.parent), path.read_text()) for path in files]
    assert [line for lines in wrong for line in lines] == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("tools/trajectory.py", "from tests.test_trajectory import jax_losses"),
        ("tools/trajectory.py", "def f():\n    import tests"),
        ("tools/trajectory.py", "from obscura_jax.cli.main import main"),
        ("tools/trajectory.py", "from obscura_jax import cli"),
        ("tests/test_tiny.py", "from tools.tiny_text import split"),
        ("obscura_jax/parity/gpt/lab.py", "from tests.support import faults"),
        ("obscura_jax/bench/measurements.py", "from docs.hooks.data_files import save"),
        ("docs/hooks/measured_tables.py", "from tools.side_by_side import ratios"),
    ],
)
def test_an_import_in_the_wrong_direction_is_noticed(path, source):
    assert wrong_direction(Path(path), source)
    assert not wrong_direction(Path(path), "from obscura_jax.parity.gpt import trajectory")


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys; print(*sys.modules)"
    out = processes.run(sys.executable, "-c", code)
    assert out.returncode == 0, out.stderr
    return {name.split(".")[0] for name in out.stdout.split()}


def test_text_needs_no_jax():
    text_names = "GPTDatasetV1, SimpleTokenizerV2, create_dataloader_v1, gpt2_tokenizer, split_text"
    assert "jax" not in loaded_by(f"from obscura_jax import {text_names}")
    assert "jax" in loaded_by("from obscura_jax import GPTModel")


def test_the_package_needs_no_extra():
    everything = "from obscura_jax import *"
    assert not EXTRAS & loaded_by(everything)


def test_generating_imports_no_training_libraries():
    words = "'generate', 'The', '--max-new-tokens', '1', '--no-compile-cache'"
    loaded = loaded_by(f"from obscura_jax.cli.main import main; main([{words}])")
    assert "flax" in loaded
    assert not {"optax", "orbax"} & loaded


def test_every_public_name_exists():
    assert set(obscura_jax.__all__) >= {
        "GPT_CONFIG_124M", "GPTConfig",
        "SimpleTokenizerV1", "SimpleTokenizerV2", "split_text", "build_vocab", "gpt2_tokenizer",
        "GPTDatasetV1", "create_dataloader_v1",
        "SelfAttention_v1", "SelfAttention_v2", "CausalAttention", "MultiHeadAttentionWrapper",
        "MultiHeadAttention",
        "LayerNorm", "GELU", "FeedForward", "TransformerBlock", "GPTModel",
        "DummyGPTModel", "DummyTransformerBlock", "DummyLayerNorm", "ExampleDeepNeuralNetwork",
        "generate_text_simple", "generate", "load_model", "save_model", "train", "TrainSettings",
    }  # fmt: skip
    for name in obscura_jax.__all__:
        value = getattr(obscura_jax, name)
        assert name == "GPT_CONFIG_124M" or value.__module__.startswith("obscura_jax.")
        assert name in dir(obscura_jax)
    with pytest.raises(AttributeError, match="GPTModell"):
        _ = obscura_jax.GPTModell
