"""Report files are checked first and survive later errors; the HTML page shows the report."""

import json
import os
import re
import sys
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest

import obscura_jax.parity.gpt.lab
from obscura_jax.interop.checkpoint import save_model
from obscura_jax.parity.findings import Finding as Difference
from obscura_jax.parity.findings import Mend, Place
from obscura_jax.parity.gpt.compare import Finding
from obscura_jax.parity.gpt.page import as_html, chart
from obscura_jax.parity.gpt.report import as_json, as_text
from obscura_jax.parity.gpt.verdict import Report, Section, Tokens
from obscura_jax.parity.report_files import check_writable, write
from obscura_jax.parity.trace import Source
from tests.support import processes
from tests.support.models import BIASED, model_of
from tests.test_parity import call

NAN = float("nan")
THEIRS = Place("add", "", Source("/mine.py", 31), "return x + y <b>", "trf_blocks.0", (3, 5))
OURS = Place("add", "", Source("/model.py", 90), "return x + 2 * y", "", (3, 5))
PLACES = (
    *[Difference("operation", THEIRS, OURS, mend=Mend("literal", OURS.source, "1 for 2"))] * 2,
    Difference("operation", replace(THEIRS, source=None), OURS, relation="JAX's is larger"),
)
FORWARD = Section(
    "forward pass",
    [
        Finding("tok_emb", 0.0, 0.0, 0.0, True, "", "random ids"),
        Finding("trf_blocks.0.norm1", 1.25e-7, 2.5e-16, 2.5e-16, True, "3 digits", "rare tokens"),
        Finding("trf_blocks.0", 3.5e-3, 3.5e-3, 4.5e-16, False, "", "batch of 3"),
        Finding("logits", NAN, NAN, NAN, False, "NaN or infinite in theirs", "full context"),
    ],
    cause="the shortcut is missing",
    places=PLACES,
)
TOKENS = [
    Tokens("<|endoftext|> inside", 16),
    Tokens("random ids", 15, 3, 5, 7, 1.5e-9, 1e-8),
    Tokens("rare tokens", 14, 2, 5, 7, 2.5e-1, 1e-8),
]
REPORT = Report("<script>x</script>", "mine.py:A&B", BIASED, [FORWARD], TOKENS, ["a <note>"])


def replace_lab(monkeypatch, function):
    monkeypatch.setattr(obscura_jax.parity.gpt.lab, "compare_implementations", function)


@pytest.fixture
def no_work(monkeypatch):
    def work(*words, **more):
        raise AssertionError("the comparison has started")

    replace_lab(monkeypatch, work)


@pytest.fixture
def small_work(monkeypatch):
    def of(report):
        monkeypatch.setattr(
            obscura_jax.parity.gpt.lab, "compare_implementations", lambda *words, **more: report
        )

    return of


@pytest.fixture
def native(tmp_path):
    save_model(tmp_path / "native", BIASED, model_of(BIASED))
    return str(tmp_path / "native")


@pytest.mark.parametrize("option", ["--json", "--html"])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none/r", "none/r cannot be written: there is no folder "),
        ("file/r", "file/r cannot be written: there is no folder "),
        ("folder", "folder cannot be written: it is a folder; name a file"),
        ("/proc/r", "/proc/r cannot be written: "),  # not even root can create files there
        ("", "the destination is empty"),
    ],
)
def test_a_report_that_cannot_be_written_is_an_error_before_the_comparison(
    tmp_path, capsys, no_work, native, option, name, words
):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("kept")
    before = sorted(tmp_path.rglob("*"))
    code = call("parity", native, option, tmp_path / name if name else "")
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_two_reports_need_two_files(tmp_path, capsys, no_work, native):
    words = ("--json", tmp_path / "r", "--html", tmp_path / "native" / ".." / "r")
    assert call("parity", native, *words) == 2
    assert "both reports would be written to " in capsys.readouterr().err


def test_files_that_can_be_written_pass_the_check(tmp_path):
    (tmp_path / "old").write_text("old")
    check_writable(str(tmp_path / "new"), str(tmp_path / "old"), "/dev/full")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    write(str(tmp_path / "old"), lambda: "new")
    assert (tmp_path / "old").read_text() == "new"
    with pytest.raises(ValueError, match="/dev/full cannot be written: No space left on device"):
        write("/dev/full", lambda: "x")
    assert Path("/dev/full").is_char_device()  # it was not replaced by a file


def test_a_full_disk_loses_neither_the_table_nor_the_other_file(
    tmp_path, capsys, native, small_work
):
    """Writing the first file fails; the table is still printed and the second file written."""
    small_work(REPORT)
    code = call("parity", native, "--json", "/dev/full", "--html", tmp_path / "r.html")
    out, err = capsys.readouterr()
    assert code == 2
    assert out == as_text(REPORT) + "\n"
    assert err == "obscura parity: /dev/full cannot be written: No space left on device\n"
    assert (tmp_path / "r.html").read_text() == as_html(REPORT)


def test_a_folder_that_disappears_during_the_comparison(tmp_path, capsys, native, monkeypatch):
    (tmp_path / "out").mkdir()

    def work(*words, **more):
        (tmp_path / "out").rmdir()
        (tmp_path / "out").write_text("a file now")
        return REPORT

    replace_lab(monkeypatch, work)
    assert call("parity", native, "--json", tmp_path / "out" / "r") == 2
    out, err = capsys.readouterr()
    assert out.endswith("rounding\n") or "verdict: differs" in out
    assert err.count("\n") == 1
    assert "out/r cannot be written: " in err


@pytest.mark.slow
def test_a_closed_pipe_does_not_change_the_exit_code(native):
    """Exit code 0 would mean "equal"."""
    program = (
        "import sys; import obscura_jax.parity.gpt.lab as lab;"
        "from tests import test_parity_page as t;"
        "lab.compare_implementations = lambda *words, **more: t.REPORT;"
        "from obscura_jax.cli.main import main; main(['parity', sys.argv[1]])"
    )
    reader, writer = os.pipe()
    os.close(reader)
    ran = processes.run(sys.executable, "-c", program, native, stdout=writer)
    os.close(writer)
    assert (ran.returncode, ran.stderr) == (1, "")


class Reader(HTMLParser):
    """The elements of a page with their attributes, and the text of each table by row and cell."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.tables, self.inside = [], [], False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        self.inside = tag in ("td", "th") or (self.inside and tag not in ("table", "tr"))

    def handle_endtag(self, tag):
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, text):
        if self.inside:
            self.tables[-1][-1][-1] += text


def test_the_page_shows_the_report():
    tensors, tokens = Reader(as_html(REPORT)).tables
    assert tensors[0] == [
        "tensor", "verdict", "float32", "float64", "expected rounding", "worst prompt", "note"
    ]  # fmt: skip
    for row, cells in zip(FORWARD.findings, tensors[1:], strict=True):
        numbers = [f"{x:.1e}" for x in (row.float32, row.float64, row.expected64)]
        result = "equal" if row.equal else "differs"
        assert cells == [row.name, result, *numbers, row.prompt, row.note]
    assert tokens == [
        ["after", "verdict", "tokens", "first difference", "margin"],
        ["<|endoftext|> inside", "equal", "16", "", ""],
        ["random ids", "near-tie", "15", "3", "1.5e-09"],
        ["rare tokens", "differs", "14", "2", "2.5e-01"],
    ]


def test_the_page_shows_both_lines_of_each_place():
    page = as_html(REPORT)
    shown = re.findall(r"<li>(PyTorch.*)\n", page)
    assert [unescape(words) for words in shown] == [
        "PyTorch's add at mine.py:31 and our add at model.py:90 differ in 2 places; PyTorch's "
        "values are ours with 1 instead of 2",
        "PyTorch's add and our add at model.py:90 differ; ours is larger",
    ]
    assert [unescape(code) for code in re.findall("<pre>(.*)</pre>", page)] == [
        "mine.py:31  return x + y <b>",
        *["model.py:90  return x + 2 * y"] * 2,  # the second place has no line in PyTorch
    ]
    without = replace(REPORT, sections=[replace(FORWARD, places=())])
    assert "<pre>" not in as_html(without)


def test_the_json_contains_both_lines_of_each_place():
    (section,) = json.loads(as_json(REPORT))["sections"]
    first, _, second = section["places"]
    source = first["torch"]["source"]
    assert (source["file"], source["line"]) == ("/mine.py", 31)
    assert first["jax"]["code"] == "return x + 2 * y"
    assert first["mend"]["words"] == "1 for 2"
    assert (second["torch"]["source"], second["mend"]) == (None, None)


def test_the_page_is_one_file_and_escapes_text():
    page = as_html(REPORT)
    reader = Reader(page)
    names = {name for _, attributes in reader.elements for name in attributes}
    assert not {"src", "href", "srcset", "xlink:href"} & names
    assert not re.search(r"@import|url\(|https?:", page)
    tags = {tag for tag, _ in reader.elements}
    assert not {"script", "note", "link", "img", "iframe"} & tags
    for text in ("&lt;script&gt;x&lt;/script&gt;", "mine.py:A&amp;B", "a &lt;note&gt;"):
        assert text in page


def test_the_page_is_readable_on_phones():
    elements = Reader(as_html(REPORT)).elements
    metas = [attributes for tag, attributes in elements if tag == "meta"]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in metas
    assert {"name": "color-scheme", "content": "light dark"} in metas
    # A drawing in pixels keeps its text size; one with a viewBox would shrink.
    drawings = [attributes for tag, attributes in elements if tag == "svg"]
    assert drawings
    assert all("width" in of and "viewbox" not in of for of in drawings)
    sizes = re.findall(r"font-size: (\d+)px", as_html(REPORT))
    assert sizes
    assert min(map(int, sizes)) >= 11


def test_the_chart_names_every_tensor_and_its_lines_differ():
    page = as_html(REPORT)
    assert re.findall(r'text-anchor="end">([^<]*)</text></g>', page) == [
        row.name for row in FORWARD.findings
    ]
    assert page.count('<path class="line ') == 3 + 3  # legend and chart
    styles = dict(re.findall(r"\.line\.(\w+) \{ ([^}]*) \}", page))
    assert "dasharray" in styles["float64"]
    assert "dasharray" not in styles["float32"] + styles["rounding"]
    widths = {name: re.search(r"width: (\d)", style)[1] for name, style in styles.items()}
    assert int(widths["rounding"]) > int(widths["float64"])
    assert all(f'class="mark {name}"' in page for name in ("float32", "float64"))


def test_heights_are_ordered_like_the_numbers():
    """From the top: NaN, large, small, almost 0, and 0."""
    values = [NAN, 1e9, 1.0, 1e-3, 1e-7, 1e-16, 0.0]
    rows = [Finding("x", v, v, v, False) for v in values]
    drawn = chart(Section("s", rows))
    heights = [c.float64 for c in drawn.columns]
    assert heights == sorted(heights)
    assert len(set(heights)) == len(values)
    assert all(0 <= height < drawn.bottom < drawn.height for height in heights)
    assert [text for _, text in drawn.ticks][-2:] == ["0", "NaN"]
    assert "NaN" not in [text for _, text in chart(Section("s", rows[1:])).ticks]
    assert chart(Section("s", [])).columns == []
    many = chart(Section("s", rows * 50))
    assert many.step >= 16  # names of 11 pixels do not overlap
    assert many.width == pytest.approx(350 * many.step)


def luminance(color):
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(a, b):
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_contrast_meets_wcag_aa_in_light_and_dark_mode():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#868e96", "#ffffff") < 4.5  # a control: this gray is used for lines only
    page = files("obscura_jax.parity").joinpath("page_style.css").read_text("utf-8")
    themes = [dict(re.findall(r"--([\w-]+): (#\w{6});", part)) for part in page.split("@media")[:2]]
    assert themes[0].keys() == themes[1].keys()
    assert themes[0]["page"] != themes[1]["page"]
    for colors in themes:
        for ground in ("page", "bad-panel"):
            for text in ("text", "quiet", "bad"):
                assert contrast(colors[text], colors[ground]) >= 4.5, (text, ground)
            for line in ("blue", "orange", "gray", "bad"):
                assert contrast(colors[line], colors[ground]) >= 3, (line, ground)
        assert contrast(colors["good"], colors["page"]) >= 4.5
        assert contrast(colors["text"], colors["panel"]) >= 4.5


def test_the_page_template_is_in_the_package():
    """The wheel also contains it, because the build packs every file that git does not ignore."""
    for name in ("page_style.css", "gpt/page.html"):
        assert files("obscura_jax.parity").joinpath(name).is_file()
    ignored = (Path(__file__).parents[1] / ".gitignore").read_text()
    assert "html" not in ignored
    assert "css" not in ignored
