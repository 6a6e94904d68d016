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
from tests.support import processes
from tests.support.pages import PAGES, ROOT, text_of

FACTS = {"command": "python tools/x.py", "machine": "m", "date": "2026-11-30"}
FACTS |= {"versions": {"obscura_jax": "0.2.0", "jax": "1"}}


def test_every_table_is_its_data():
    shown = [
        name for page in PAGES for name in re.findall("<!-- measured: (.*) -->", text_of(page))
    ]
    assert sorted(shown) == sorted(TABLES)
    assert {page: names for page in PAGES if (names := measured.differing(text_of(page)))} == {}


def test_the_figures_of_a_process_in_the_text_are_those_of_the_data():
    generation, engines = (data_files.load(name)["rows"] for name in ("generation", "engines"))
    of_process = [row for row in generation if row["name"].startswith("process")]
    ours, peer = (row["mebibytes"] for row in of_process)
    (weights,) = {row["mebibytes"] for row in engines if row["weights"] == "float32, as given"}
    compiling = of_process[0]["compile_seconds"]
    text = text_of("docs/explain/performance.md").replace("\n", " ")
    memory = f"peaks at {ours:.0f} MiB (transformers: {peer:.0f}), {weights:.0f} of them weights"
    assert f"{memory}; compiling adds {compiling:.1f} s" in text
    assert f"{memory}; compiling adds {compiling + 1:.1f} s" not in text


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


def test_versions_are_those_that_run(tmp_path, monkeypatch):
    monkeypatch.setattr(data_files, "version", lambda name: "2.13.0+cpu")
    monkeypatch.setattr(obscura_jax, "__version__", "9.9.9")  # newer than what pip installed
    data_files.save(tmp_path / "x.json", [{"a": 1}], command="x", packages=["torch"])
    want = {"obscura_jax": "9.9.9", "jax": "2.13.0", "torch": "2.13.0"}
    assert data_files.load("x", tmp_path)["versions"] == want


@pytest.mark.parametrize(
    ("family", "model", "name"),
    [(25, 17, "A (Zen 4), "), (25, 1, "A (Zen 3), "), (26, 17, "A (Zen 5), "), (6, 143, "A, ")],
)
def test_a_machine_has_its_generation(tmp_path, family, model, name):
    lines = f"model name\t: A\ncpu family\t: {family}\nmodel\t\t: {model}\n"
    (tmp_path / "cpuinfo").write_text(lines)
    assert data_files.this_machine(tmp_path / "cpuinfo").startswith(name)


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


@pytest.mark.parametrize(
    "save", [["--save", "./gpu"], ["--save", "gpu/"], ["--save=gpu"], ["--save", "gpu"]]
)
def test_only_the_option_is_left_out_of_the_command(monkeypatch, tmp_path, save):
    monkeypatch.chdir(tmp_path)
    assert command(["gpu", *save], monkeypatch) == "python tools/x.py gpu"
    assert (tmp_path / "gpu").is_dir()


def test_figures_of_other_settings_do_not_replace_the_data(monkeypatch, capsys):
    assert command(["--save"], monkeypatch) == "python tools/x.py"
    assert command(["gpu", "--save"], monkeypatch, ["gpu"]) == "python tools/x.py gpu"
    with pytest.raises(SystemExit):
        command(["--rows", "1", "--save"], monkeypatch)
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit):
        command(["--rows", "1", "--save", "docs/data"], monkeypatch)
    assert capsys.readouterr().err.count("docs/data has figures of the default settings; ") == 2


def test_a_release_has_one_version():
    generation, training = data_files.load("generation"), data_files.load("training")
    assert release(generation, training)["version"] == obscura_jax.__version__
    older = {**training, "versions": {**training["versions"], "obscura_jax": "0.1.0"}}
    with pytest.raises(ValueError, match=r"training with 0\.1\.0; measure both"):
        release(generation, older)
    with pytest.raises(ValueError, match="training with another machine; measure both"):
        release(generation, {**training, "machine": "another machine"})


def test_a_release_is_added_or_replaced():
    first, second, again = ({"version": v, "date": d} for v, d in ("1a", "2a", "2b"))
    assert measured.with_release([first], second) == [first, second]
    assert measured.with_release([first, second], again) == [first, again]


@pytest.mark.parametrize("fact", [*FACTS, "rows"])
def test_data_without_a_fact_is_refused(tmp_path, fact):
    data = {**FACTS, "rows": [{}]}
    (tmp_path / "x.json").write_text(json.dumps(data))
    assert data_files.load("x", tmp_path) == data
    (tmp_path / "x.json").write_text(json.dumps({**data, fact: ""}))
    with pytest.raises(ValueError, match=rf"^x\.json lacks {fact}; measure again"):
        data_files.load("x", tmp_path)


def test_a_date_of_another_form_is_refused(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({**FACTS, "rows": [{}], "date": "30 Nov"}))
    with pytest.raises(
        ValueError, match=r"^x\.json has the date '30 Nov'; write year, month, day, as"
    ):
        data_files.load("x", tmp_path)


# The analysis of a program by obscura_jax.scale.topology, and the rows of both tables from it.
ROWS_OF_TOPOLOGY = """
import json
from tools.topology_table import batch_row, token_row
launches = {"greedy": {"commands": 1, "graphs": 0, "host_returns": 0}, "seconds": [0.1, 0.2]}
found = {"topology": "h100:1", "program": "train", "mesh": {"data": 1}, "batch": 8}
found |= {"memory": {"arguments": 1, "peak": 2}, "flops": 3, "sent": 4}
found |= {"roofline": {"seconds": 1, "bound": "compute", "memory": 1}}
found |= {"launches": {**launches, "sampling": launches["greedy"], "bound": "launch"}}
print(json.dumps([batch_row("gpt2", found), token_row("gpt2", found)]))
"""


def test_topology_table_writes_the_keys_that_the_tables_read():
    printed = processes.run(sys.executable, "-c", ROWS_OF_TOPOLOGY, cwd=ROOT)
    batch, token = json.loads(printed.stdout)
    for name, row in {"tpu_batches": batch, "gpu_batches": batch, "gpu_tokens": token}.items():
        assert [list(each) for each in data_files.load(name)["rows"][:1]] == [list(row)]
    assert list(batch) != list(token)


def test_the_history_ends_with_this_version():
    history = data_files.load("releases", facts=())["rows"]
    last = release(data_files.load("generation"), data_files.load("training"))
    assert history[-1] == last
    assert last["version"] == obscura_jax.__version__
    assert len({row["version"] for row in history}) == len(history)
