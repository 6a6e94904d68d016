"""The wheel has every file of the package, and works in an environment away from the clone.

No package is downloaded: the environment sees those of the running one through a `.pth` file, in
which its own obscura_jax comes first.
"""

import re
import shutil
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import nbformat
import pytest

import obscura_jax
from tests.support import notebooks, processes

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "obscura_jax"
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
INSTALLED = "completion,hub,look,notebooks,parity,test,tokenizers,torch"  # where tests run
DIST_INFO = f"obscura_jax-{obscura_jax.__version__}.dist-info"
AWAY = {"PYTHONPATH": ""}  # as if it were not set
SIZES = "--emb-dim 8 --n-heads 2 --n-layers 1 --context-length 16 --batch-size 2 --steps 2"
COMMANDS = {
    "generate": ["generate", "The for statement", "--max-new-tokens", "8"],
    "info": ["info", "tiny"],
    "train": ["train", "--text", "book.txt", "--out", "run", *SIZES.split()],
    "convert": ["convert", "run/model", "hf", "--to", "hf"],
    "look": ["look", "tiny", "A list is", "--no-ablations", "--html", "look.html"],
    "parity": ["parity", "--new", "pair.py"],
}


def run(*command, **how):
    """Run a program that must succeed, and return its standard output."""
    ended = processes.run(*command, **how)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build a source distribution, and the wheel from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    (wheel,) = folder.glob("*.whl")
    assert wheel.name == f"obscura_jax-{obscura_jax.__version__}-py3-none-any.whl"
    return wheel


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """Return the Python of an environment for the tests that install the package in it."""
    return environment(tmp_path_factory.mktemp("clean") / "venv")


def environment(folder):
    """Return the Python of a new environment without obscura_jax that sees all other packages."""
    run(sys.executable, "-m", "venv", folder, env=AWAY)
    # Python 3.11 adds setuptools, which would hide a newer one that PyTorch needs.
    run(folder / "bin" / "python", "-m", "pip", "uninstall", "-q", "-y", "setuptools", env=AWAY)
    purelib = sysconfig.get_path("purelib", vars={"base": str(folder)})
    packages = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    # The .pth files in the folders that are added are not read, so a clone remains invisible.
    Path(purelib, "packages.pth").write_text("\n".join(packages))
    return folder / "bin" / "python"


# Runs the notebook that is named first as a user does, and writes it with its outputs.
AS_A_USER = """
import sys
import nbformat
from nbclient import NotebookClient
from tempfile import TemporaryDirectory
notebook = nbformat.read(sys.argv[1], as_version=4)
client = NotebookClient(notebook, timeout=None, kernel_name="python3")
with TemporaryDirectory() as sockets:
    kernel = client.create_kernel_manager()
    kernel.transport, kernel.ip = "ipc", f"{sockets}/kernel"
    client.execute()
nbformat.write(notebook, sys.argv[2])
"""


def install(python, wheel):
    """Install a wheel without its dependencies."""
    words = ("-m", "pip", "install", "-q", "--no-index", "--disable-pip-version-check")
    run(python, *words, "--no-deps", "--force-reinstall", wheel, env=AWAY)


def imported_from(python, folder, env):
    """Return the folder of the obscura_jax that a program in `folder` imports."""
    show = "import obscura_jax; print(obscura_jax.__file__)"
    return Path(run(python, "-c", show, env=env, cwd=folder).strip()).parent


def missing(wheel):
    """Return the files of the package that the wheel lacks."""
    here = {
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    return sorted(here - set(zipfile.ZipFile(wheel).namelist()))


def failing(python, folder):
    """Return the commands that fail in an empty folder."""
    folder.mkdir()
    sample = "from obscura_jax.text import sample_text; print(sample_text())"
    ended = processes.run(python, "-c", sample, env=AWAY, cwd=folder)
    (folder / "book.txt").write_text(ended.stdout, encoding="utf-8")
    obscura = python.parent / "obscura"
    codes = {
        name: processes.run(obscura, *words, env=AWAY, cwd=folder).returncode
        for name, words in COMMANDS.items()
    }
    return [name for name, code in codes.items() if code != 0]


def without(wheel, names, folder):
    """Return a copy of a wheel that lacks some files."""
    folder.mkdir()
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(folder / wheel.name, "w") as new:
        for name in old.namelist():
            if name not in names:
                new.writestr(name, old.read(name))
    return folder / wheel.name


def test_the_wheel_works_away_from_the_clone(wheel, clean, tmp_path):
    assert missing(wheel) == []
    install(clean, wheel)
    assert imported_from(clean, tmp_path, AWAY).is_relative_to(clean.parents[1])
    assert imported_from(clean, tmp_path, {"PYTHONPATH": str(ROOT)}) == PACKAGE
    assert failing(clean, tmp_path / "work") == []
    assert (tmp_path / "work" / "look.html").stat().st_size > 50_000
    assert (tmp_path / "work" / "hf" / "config.json").exists()


def test_a_wheel_that_lacks_files_is_noticed(wheel, clean, tmp_path):
    names = {
        "obscura_jax/models/tiny/model.safetensors": ["generate", "info", "look"],
        "obscura_jax/text/sample_data.txt": ["train", "convert"],
        "obscura_jax/look/page/views.css": ["look"],
        "obscura_jax/parity/pair_template.py.txt": ["parity"],
    }
    damaged = without(wheel, names, tmp_path / "damaged")
    assert missing(damaged) == sorted(names)
    install(clean, damaged)
    assert set(failing(clean, tmp_path / "work")) == set().union(*names.values())


def test_the_wheel_has_every_extra(wheel, clean):
    metadata = zipfile.ZipFile(wheel).read(f"{DIST_INFO}/METADATA").decode()
    assert set(re.findall(r"^Provides-Extra: (.+)$", metadata, re.MULTILINE)) == set(EXTRAS)
    install(clean, wheel)
    words = ("-m", "pip", "install", "--no-index", "--dry-run", "--disable-pip-version-check")
    for names, unknown in ((INSTALLED, []), (f"{INSTALLED},torchh", ["torchh"])):
        ended = processes.run(clean, *words, f"{wheel}[{names}]", env=AWAY)
        assert ended.returncode == 0, ended.stderr
        assert re.findall(r"does not provide the extra '([^']+)'", ended.stderr) == unknown
    refused = processes.run(clean, *words, "--ignore-installed", wheel, env=AWAY)
    assert refused.returncode != 0  # nothing is downloaded


def test_the_command_in_an_error_about_an_extra_works(wheel, clean, tmp_path):
    install(clean, wheel)
    code = "import sys; sys.modules['uvicorn'] = None; sys.argv = ['obscura', *sys.argv[1:]]; "
    code += "from obscura_jax.__main__ import run; run()"
    ended = processes.run(clean, "-c", code, "look", "tiny", "--serve", env=AWAY, cwd=tmp_path)
    command = re.search(r"run pip (install '.+') in the folder of that wheel\n$", ended.stderr)
    assert command is not None, ended.stderr
    options = "--no-index --dry-run --disable-pip-version-check"
    shell = f"{clean} -m pip {command[1]} {options}"
    assert "uvicorn" in run("sh", "-c", shell, env=AWAY, cwd=wheel.parent)
    assert processes.run("sh", "-c", shell, env=AWAY, cwd=tmp_path).returncode != 0


def test_a_notebook_installs_the_package_in_an_empty_folder(wheel, tmp_path):
    python, work = environment(tmp_path / "venv"), tmp_path / "work"
    work.mkdir()

    def ended(name):
        files = [notebooks.NOTEBOOKS / f"{name}.ipynb", tmp_path / f"{name}.ipynb"]
        # pip sees the package of the clone, which Python does not see, unless it is forced.
        settings = {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_FORCE_REINSTALL": "1"}
        process = processes.run(python, "-c", AS_A_USER, *files, env=AWAY | settings, cwd=work)
        if process.returncode != 0:
            return [process.stderr]
        return notebooks.differences(*(nbformat.read(file, as_version=4) for file in files))

    (failed,) = ended("ch01_setup")  # there is no wheel
    assert "ModuleNotFoundError: No module named 'obscura_jax'" in re.sub(r"\x1b.*?m", "", failed)
    # The first notebook shows that it installs the package; the next finds it installed.
    shutil.copy(wheel, work)
    assert ended("ch01_setup") == ["cell 1 has more or fewer outputs"]
    (work / wheel.name).unlink()
    assert ended("ch02_text") == []
