"""Strict for every test: shapes checked at each call, no silent broadcast, no key used twice.

Compiled programs are kept in build/test-programs, for later runs and for the processes that tests
start: most of the time of the tests is compilation.
"""

import os
import signal
from pathlib import Path

import jaxtyping
from jaxtyping import install_import_hook

from obscura_jax.scale import libtpu

libtpu.silence_if_no_tpu()  # before JAX starts
PROGRAMS = Path(__file__).parents[1] / "build" / "test-programs"
os.environ |= {
    "OBSCURA_CACHE_DIR": str(PROGRAMS),
    "JAX_COMPILATION_CACHE_DIR": str(PROGRAMS),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    # PyTorch's threads spend more time waiting than computing on tensors as small as those of the
    # tests. A second one makes 100 training steps 10 times slower on a busy machine.
    "OMP_NUM_THREADS": "1",
}

# A shell ignores Ctrl-C for what it runs in the background, and processes inherit that: but those
# that tests start, and send signals to, must end.
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)

# Before the first import of the package: the annotations of its mathematics become checks.
install_import_hook("obscura_jax.nn", "beartype.beartype")

import jax  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

from obscura_jax.cli.main import main  # noqa: E402
from obscura_jax.interop.checkpoint import load_model, save_model  # noqa: E402
from tests.support.models import course_model  # noqa: E402
from tests.support.processes import kill_all  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)


@pytest.fixture(autouse=True)
def no_process_outlives_its_test():
    yield
    kill_all()


@pytest.fixture(autouse=True, scope="module")
def programs_do_not_pile_up():
    """Forget compiled programs after each file: Linux lets a process map 65,530 areas of memory.

    The programs of all tests together need more; XLA then ends the process.
    """
    yield
    jax.clear_caches()


@pytest.fixture
def fails(capsys):
    """Run the command, which must end with code 2 and one line; return the line."""

    def failing(*words):
        with pytest.raises(SystemExit) as stop:
            main(list(map(str, words)))
        out, err = capsys.readouterr()
        assert (stop.value.code, out, err.count("\n")) == (2, "", 1)
        return err

    return failing


@pytest.fixture
def unchecked():
    """Annotations are words only, as outside the tests: what they refuse meets our own checks."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def course(tmp_path):
    """A course checkpoint on disk, and its state dict."""
    state = course_model().state_dict()
    torch.save(state, tmp_path / "course.pth")
    return tmp_path / "course.pth", state


@pytest.fixture
def native(tmp_path, course):
    """A native folder."""
    model, params = load_model(course[0], n_heads=3)
    save_model(tmp_path / "native", model.cfg, params)
    return tmp_path / "native"


@pytest.fixture
def x64():
    """float64 for the length of a test."""
    with jax.enable_x64(True):
        yield
