"""The site builds without a warning, needs no network, and has no broken link."""

import re
import sys
import tomllib
from pathlib import Path

import pytest

import obscura_jax
from docs.hooks import command_line, tables
from docs.hooks.links import filled, for_the_site, links
from obscura_jax.cli.main import command_parser
from obscura_jax.config import PRESETS
from obscura_jax.interop.name_tables import COURSE
from obscura_jax.parity import report
from tests.support import processes
from tests.support.links import broken_in, faults_of_site, markdown_of
from tests.support.pages import PAGES, ROOT

TEXTS = [
    *PAGES,
    *(
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "notebooks/README.md",
        "obscura_jax/models/tiny/README.md",
    ),
    *(str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("notebooks/*.ipynb"))),
]


def test_no_link_is_broken():
    assert sum(len([*links(markdown_of(ROOT / page))]) for page in TEXTS) > 150
    broken = [line for page in TEXTS for line in broken_in(page, markdown_of(ROOT / page), ROOT)]
    assert broken == []


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("guides/train.md", "guides/trains.md"),
        ("guides/generate.md#an-engine", "guides/generate.md#engine"),
        ("../README.md#limits", "../README.md#limit"),
        ("../notebooks/ch02_text.ipynb#A-vocabulary", "../notebooks/ch02_text.ipynb#Vocabulary"),
        ("../LICENSE", "../LICENCE"),
        ("https://docs.jax.dev", "docs.jax.dev"),
    ],
)
def test_a_broken_link_is_detected(right, wrong):
    def broken(target):
        return broken_in("docs/page.md", f"See ![a [b] `c`]({target}).", ROOT)

    assert broken(right) == []
    assert broken(wrong) == [f"docs/page.md links to {wrong}"]
    assert broken_in("docs/page.md", f"```\n[a]({wrong})\n```\nand `[b]({wrong})`", ROOT) == []


def test_links_are_those_of_the_site():
    site = {"docs/guides/train.md": "guides/train.md", "README.md": "README.md"}
    site |= {"notebooks/parity.ipynb": "notebooks/parity.ipynb"}
    text = "[r](../../README.md#x) [n](../../notebooks/parity.ipynb#A,-B) ![l](../../LICENSE) "
    text += "[h](#y) [e](https://x.y) `[c](d)`"
    expected = "[r](../README.md#x) [n](../notebooks/parity.ipynb#a-b) l "
    expected += "[h](#y) [e](https://x.y) `[c](d)`"
    assert for_the_site(text, "docs/guides/train.md", ROOT, site) == expected
    with pytest.raises(ValueError, match=r"links to none\.md, which does not exist; correct"):
        for_the_site("[x](none.md)", "docs/guides/train.md", ROOT, site)
    with pytest.raises(ValueError, match="which is outside of the repository"):
        for_the_site("[x](../../../none.md)", "docs/guides/train.md", ROOT, site)


def test_generated_parts_replace_their_marks():
    mark = "<!-- generated: {} -->"
    assert filled(f"a\n{mark.format('b')}\nc", {"b": lambda: "| |"}) == "a\n| |\nc"
    with pytest.raises(ValueError, match="nothing generates 'd'; choose from b"):
        filled(mark.format("d"), {"b": str})


def test_the_reference_has_every_public_name():
    pages = "".join(path.read_text("utf-8") for path in (ROOT / "docs/reference/api").iterdir())
    documented = set(re.findall(r"(?m)^::: obscura_jax\.[\w.]+\.(\w+)$", pages))
    assert set(obscura_jax.__all__) - documented == set()
    assert set(report.__all__) - documented  # not every name is documented


def test_the_reference_has_every_option():
    text = command_line.as_markdown()
    (commands,) = command_parser()._subparsers._group_actions
    for name, parser in commands.choices.items():
        section = text.split(f"## obscura {name}\n")[1].split("\n## ")[0]
        for line in parser.format_help().splitlines():
            for option in re.findall(r"^  (--[\w-]+)", line):
                assert f"`{option}" in section, (name, option)
    assert "--learning-rat`" not in text
    assert "| `--learning-rate X` | peak learning rate; default: 0.001 |" in text
    assert all(preset in text for preset in PRESETS)


def test_every_extra_is_documented():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    table = (ROOT / "docs/getting-started.md").read_text("utf-8").split("| extra |")[1]
    cells = re.findall(r"(?m)^\| (`.*?) \|", table)
    documented = [name for cell in cells for name in re.findall("`(.*?)`", cell)]
    assert sorted(documented) == sorted(project["optional-dependencies"])


def test_the_tables_are_the_packages_data():
    assert "| v5e | 197 | 819 | 15.75 | 200 |" in tables.tpus()
    assert "| h100 | NVIDIA H100 80GB HBM3 | 989.5 | 3350 | 80 | 450 | 50 | 9.0 |" in tables.gpus()
    assert len(tables.dialects().splitlines()) == 2 + len(COURSE.rows)
    assert "`h.{}.attn.c_attn.weight`, transposed" in tables.dialects()
    assert report.SCHEMA in tables.program_report()
    assert "gradient_findings" in tables.program_report()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    build = processes.run(
        *(sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder),
        env={"NO_MKDOCS_2_WARNING": "1"},
        cwd=ROOT,
    )
    assert build.returncode == 0, build.stderr
    return folder


@pytest.mark.slow
def test_the_site_builds_and_is_complete_without_a_network(site):
    assert list(faults_of_site(site)) == []
    assert (site / "search" / "search_index.js").stat().st_size > 100_000
    assert "grad_accum_steps" in (site / "reference" / "api" / "training.html").read_text("utf-8")


PAGE = (
    '<a href="{}">x</a> <a href="b.html#%C3%A9">y</a> <img src="{}"> <script src="b.js"></script>'
)


@pytest.mark.parametrize(
    ("link", "image", "faults"),
    [
        ("b.html#é", "c.png", []),
        ("#top", "c.png", ["a.html links to #top"]),
        ("b.html#e", "c.png", ["a.html links to b.html#e"]),
        ("c.html", "c.png", ["a.html links to c.html"]),
        ("https://example.org", "c.png", []),
        ("b.html", "https://example.org/c.png", ["a.html loads https://example.org/c.png"]),
        ("b.html", "//example.org/c.png", ["a.html loads //example.org/c.png"]),
        ("b.html", "d.png", ["a.html links to d.png"]),
    ],
)
def test_a_fault_of_a_site_is_detected(tmp_path: Path, link, image, faults):
    (tmp_path / "a.html").write_text(PAGE.format(link, image), encoding="utf-8")
    (tmp_path / "b.html").write_text('<h1 id="é">b</h1>', encoding="utf-8")
    for name in ("b.js", "c.png"):
        (tmp_path / name).touch()
    assert list(faults_of_site(tmp_path)) == faults
    (tmp_path / "b.css").write_text("a { background: url('https://example.org/d.png') }")
    assert list(faults_of_site(tmp_path))[len(faults) :] == [
        "b.css loads https://example.org/d.png'"
    ]
