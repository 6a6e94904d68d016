"""The tables of measured figures in the pages are those of the data files in docs/data."""

import argparse
import json
import re
import sys
from types import SimpleNamespace

import pytest

import obscura_jax
from docs.hooks import data_files, measured, measured_tables, site
from docs.hooks.measured_tables import TABLES, release
from tests.support.pages import PAGES, ROOT, text_of

FACTS = {"command": "python tools/x.py", "machine": "m", "date": "2026-11-30"}
FACTS |= {"versions": {"obscura_jax": "0.2.0", "jax": "1"}}


def test_every_table_is_its_data():
    shown = [
        name for page in PAGES for name in re.findall("<!-- measured: (.*) -->", text_of(page))
    ]
    assert sorted(shown) == sorted(TABLES)
    assert {page: names for page in PAGES if (names := measured.differing(text_of(page)))} == {}


def test_every_file_of_data_is_shown(monkeypatch):
    def load(name, **how):
        opened.add(name)
        return data_files.load(name, **how)

    opened = set()
    monkeypatch.setattr(measured_tables, "load", load)
    for table in TABLES.values():
        table()
    assert opened == {path.stem for path in (ROOT / "docs/data").iterdir()}


@pytest.mark.parametrize("page", [page for page in PAGES if "<!-- measured: " in text_of(page)])
def test_another_figure_is_noticed(page):
    text = text_of(page)
    first = text.index("<!-- measured: ")
    digit = first + re.search(r"\d\.\d", text[first:]).start()
    changed = text[:digit] + str((int(text[digit]) + 1) % 10) + text[digit + 1 :]
    (name,) = measured.differing(changed)
    assert f"<!-- measured: {name} -->" in text
    assert measured.rewritten(changed) == text


def test_the_site_names_the_page_and_the_table():
    page = SimpleNamespace(file=SimpleNamespace(abs_src_path=ROOT / "docs/explain/numerics.md"))
    text = text_of("docs/explain/numerics.md")
    assert site.on_page_markdown(text, page, None, None)
    message = r"^docs/explain/numerics\.md has other figures than docs/data: components; run `make"
    with pytest.raises(site.PluginError, match=message):
        site.on_page_markdown(text.replace("GELU", "GeLU"), page, None, None)


def test_marks_without_a_table_are_refused():
    tables = {"a": lambda: "| x |"}
    page = "<!-- measured: {} -->\n{}\ntext"
    assert measured.rewritten(page.format("a", "<!-- end -->"), tables).splitlines()[2] == "| x |"
    assert measured.rewritten("see `<!-- measured: b -->`", tables) == "see `<!-- measured: b -->`"
    with pytest.raises(ValueError, match="no table is named 'b'; choose from a"):
        measured.rewritten(page.format("b", "<!-- end -->"), tables)
    with pytest.raises(ValueError, match="a table has no end; add the line <!-- end -->"):
        measured.rewritten(page.format("a", ""), tables)


def test_figures_are_saved_with_what_they_depend_on(tmp_path):
    rows = [{"a": data_files.significant(1.23456), "b": [1, 2]}, {"a": 2}]
    data_files.save(tmp_path / "x.json", rows, command="python tools/x.py", packages=["numpy"])
    data = data_files.load("x", tmp_path)
    assert data["rows"] == [{"a": 1.235, "b": [1, 2]}, {"a": 2}]
    assert set(data["versions"]) == {"obscura_jax", "jax", "numpy"}
    assert re.fullmatch(r".+, \d+ cores", data["machine"])
    assert len((tmp_path / "x.json").read_text("utf-8").splitlines()) == 14


def command(words, monkeypatch, expected=()):
    """Return the command that a tool records if it is started with some words."""
    parser = argparse.ArgumentParser()
    data_files.add_save_option(parser)
    parser.add_argument("--rows")
    parser.add_argument("kind", nargs="?")
    monkeypatch.setattr(sys, "argv", ["tools/x.py", *words])
    return data_files.saved_command(parser, parser.parse_args().save, expected)


def test_the_command_is_the_one_that_was_run(monkeypatch, tmp_path):
    folder = tmp_path / "a" / "b"
    words = ["--rows", "1 2", "--save", str(folder)]
    assert command(words, monkeypatch) == "python tools/x.py --rows '1 2'"
    assert folder.is_dir()
    assert command(["--rows", "1"], monkeypatch) == "python tools/x.py --rows 1"


def test_figures_of_other_settings_do_not_replace_the_data(monkeypatch, capsys):
    assert command(["--save"], monkeypatch) == "python tools/x.py"
    assert command(["gpu", "--save"], monkeypatch, ["gpu"]) == "python tools/x.py gpu"
    with pytest.raises(SystemExit):
        command(["--rows", "1", "--save"], monkeypatch)
    assert "docs/data has figures of the default settings; name a" in capsys.readouterr().err


def test_a_release_has_one_version():
    generation, training = data_files.load("generation"), data_files.load("training")
    assert release(generation, training)["version"] == obscura_jax.__version__
    older = {**training, "versions": {**training["versions"], "obscura_jax": "0.1.0"}}
    with pytest.raises(ValueError, match=r"with 0\.2\.0, training with 0\.1\.0; measure both"):
        release(generation, older)


@pytest.mark.parametrize("fact", [*FACTS, "rows"])
def test_data_without_a_fact_is_refused(tmp_path, fact):
    data = {**FACTS, "rows": [{}]}
    (tmp_path / "x.json").write_text(json.dumps(data))
    assert data_files.load("x", tmp_path) == data
    (tmp_path / "x.json").write_text(json.dumps({**data, fact: ""}))
    with pytest.raises(ValueError, match=rf"^x\.json lacks {fact}; measure again"):
        data_files.load("x", tmp_path)


def test_the_history_ends_with_this_version():
    history = data_files.load("releases", facts=())["rows"]
    last = release(data_files.load("generation"), data_files.load("training"))
    assert history[-1] == last
    assert last["version"] == obscura_jax.__version__
    assert len({row["version"] for row in history}) == len(history)
