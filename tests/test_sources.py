"""The line of an operation is the innermost one of the user, not of a library or of the engine."""

import sys
from pathlib import Path

import numpy as np
import torch

from obscura_jax.parity import sources
from obscura_jax.parity.sources import Frame, current_source, line_of, user_line, user_source
from obscura_jax.parity.trace import Source

ENGINE = Frame(str(Path(sources.__file__).parent / "torch_trace.py"), 5, "dispatch")
USER = Frame("/home/user/model.py", 17, "forward")
CALLER = Frame("/home/user/main.py", 3, "main")
LIBRARY = Frame(str(Path(torch.nn.__file__).parent / "functional.py"), 99, "linear")
INTERNAL = Frame(str(Path(torch.__file__).parent / "_ops.py"), 9, "__call__")
STANDARD = Frame(str(Path(sys.modules["contextlib"].__file__)), 1, "inner")


def place(source):
    return source and (source.file, source.line, source.function)


def test_the_innermost_line_of_the_user_is_found():
    assert place(user_source([ENGINE, INTERNAL, LIBRARY, STANDARD, USER, CALLER])) == USER
    assert place(user_source([USER, LIBRARY, CALLER])) == USER
    assert place(user_source([CALLER, USER])) == CALLER


def test_a_library_alone_has_its_innermost_line():
    assert place(user_source([ENGINE, INTERNAL, LIBRARY, STANDARD])) == LIBRARY
    assert user_source([ENGINE, INTERNAL]) is None


def test_the_caller_of_the_engine_is_not_a_line_of_the_program():
    assert place(user_source([LIBRARY, ENGINE, CALLER])) == LIBRARY
    assert place(user_source([LIBRARY, USER, ENGINE, CALLER])) == USER


def test_lines_in_the_folder_of_a_file_come_first(tmp_path):
    installed = Frame(str(tmp_path / "env/site-packages/them/nets.py"), 4, "f")
    own = Frame(str(tmp_path / "pair.py"), 8, "torch_side")
    assert place(user_line([LIBRARY, installed, own], tmp_path)) == own
    assert place(user_line([LIBRARY, installed, USER], tmp_path)) == installed
    assert user_line([LIBRARY, ENGINE], tmp_path) is None


def test_the_running_line_and_its_text():
    here = current_source()
    assert (Path(here.file).name, here.function) == (
        "test_sources.py",
        sys._getframe().f_code.co_qualname,
    )
    assert line_of(here) == "here = current_source()"
    assert line_of(Source(here.file, here.line + 1)) != line_of(here)


def test_the_text_of_a_file_that_changed_is_read_again(tmp_path):
    file = tmp_path / "model.py"
    file.write_text("x = 1\n")
    source = Source(str(file), 1)
    assert line_of(source) == "x = 1"
    file.write_text("x = 1234\n")
    assert line_of(source) == "x = 1234"
    assert line_of(Source(str(tmp_path / "missing.py"), 1)) == ""
    assert line_of(Source(str(tmp_path / "missing.py"), 1, text="recorded")) == "recorded"
    assert line_of(None) == ""


def test_libraries_do_not_contain_installed_models():
    roots = sources.library_roots()
    assert LIBRARY.file.startswith(roots)
    assert np.__file__.startswith(roots)
    assert STANDARD.file.startswith(roots)
    site = Path(torch.__file__).parents[1]
    assert not str(site / "timm" / "vit.py").startswith(roots)
    assert not __file__.startswith(roots)
