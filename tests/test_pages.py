"""The examples of the README and of the documentation run, and print what the pages say."""

import re
from pathlib import Path

import pytest

from obscura_jax import TrainSettings
from obscura_jax.scale.mesh import batch_shards, parse_mesh
from obscura_jax.text import sample_text
from tests.support import examples
from tests.support.pages import (
    GUIDE,
    NOT_RUN,
    PAGES,
    PROMISE,
    commands,
    is_run,
    prepare,
    python_blocks,
    text_of,
)


def python_parameters():
    for page in PAGES:
        for number, block in enumerate(python_blocks(page)):
            marks = [pytest.mark.gpt2_124m] if "torch-seed:" in block else []
            yield pytest.param(block, marks=marks, id=f"{page} {number}")


@pytest.mark.slow
@pytest.mark.parametrize("block", [*python_parameters()])
def test_python_block(block, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("book.txt").write_text(sample_text(), encoding="utf-8")  # blocks that train read it
    exec(compile(block, "page", "exec"), {})
    promised = PROMISE.findall(block)
    assert promised
    assert capsys.readouterr().out.splitlines() == promised


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(map(is_run, commands(page)))])
def test_commands(page, tmp_path):
    prepare(page, tmp_path)
    text = text_of(page)
    assert list(examples.differences(text, examples.executed(text, tmp_path, [*NOT_RUN]))) == []


def test_each_reason_not_to_run_a_command_is_needed():
    everything = [command for page in PAGES for command in commands(page)]
    assert len(everything) > 50
    for pattern in NOT_RUN:
        assert any(re.search(pattern, command) for command in everything), pattern


def meshes_that_do_not_fit(page):
    """Return the meshes of a page's training commands that do not divide their batches."""
    found = []
    for block in re.findall(r"(?ms)^```\w+\n(.*?)^```", page):
        rows = int((re.findall(r"--batch-size (\d+)", block) or ["16"])[0])
        meshes = re.findall(r"obscura train(?:[^\n]|(?<=\\)\n)*--mesh (\S+?)['\s]", block)
        found += [mesh for mesh in meshes if rows % batch_shards(parse_mesh(mesh))]
    return found


def test_commands_for_other_machines_fit_their_meshes():
    assert TrainSettings.batch_size == 16
    assert [mesh for page in PAGES for mesh in meshes_that_do_not_fit(text_of(page))] == []
    page = text_of("docs/guides/processes.md")
    assert meshes_that_do_not_fit(page.replace(" --batch-size 32", "")) == ["data=4,fsdp=8"]
    assert meshes_that_do_not_fit(page.replace("--mesh fsdp=16", "--mesh fsdp=32")) == ["fsdp=32"]


def test_the_readme_shows_the_guides_first_report():
    (shown,) = (
        block
        for kind, block in examples.blocks(text_of("README.md"))
        if kind == "console" and "obscura parity pair.py" in block
    )
    guide = text_of(GUIDE).splitlines()
    lines = [line for line in shown.splitlines() if line != "..."]
    assert len(lines) > 3
    assert set(lines) <= set(guide)
    assert not {line.replace("1e-06", "1e-07") for line in lines} <= set(guide)


def in_one_line(numbers, page):
    lines = (set(re.findall(r"\d[\d.,]*x?", line)) for line in text_of(page).splitlines())
    return any(set(numbers) <= line for line in lines)


def test_the_readmes_figures_are_those_of_the_pages():
    readme = text_of("README.md")
    section = readme.split("## How fast\n")[1].split("\n## ")[0]
    rows = [line.split("|", 2)[2] for line in section.splitlines() if re.search(r"^\|.*\d", line)]
    assert len(rows) == 4
    for row in rows:
        numbers = re.findall(r"(?<!CTranslate)\d[\d.]*x?", row)
        assert len(numbers) == 3
        assert in_one_line(numbers, "docs/explain/performance.md"), row
        assert not in_one_line([*numbers, "1.99x"], "docs/explain/performance.md")
    (one_row,) = re.findall(r"takes ([\d.]+) ms per token on two .* takes ([\d.]+)\.", readme)
    assert in_one_line(one_row, "docs/explain/performance.md")
    (planted,) = re.findall(r"All (\d+) mistakes .* are found, .* for (\d+)\.", readme)
    assert in_one_line(planted, GUIDE)
    (first_steps,) = re.findall(r"compiles \(([\d.]+) s; PyTorch needs ([\d.]+)\)", readme)
    assert in_one_line(first_steps, "docs/explain/performance.md")


def test_the_readme_is_one_page():
    assert len(text_of("README.md").splitlines()) <= 150
