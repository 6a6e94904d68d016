"""The page of two programs is one file, escapes everything, and shows the code of both sides."""

import re
from dataclasses import replace
from importlib.resources import files

import pytest
from markupsafe import escape

from obscura_jax.parity.findings import (
    Finding,
    Gradient,
    Mend,
    Operation,
    Output,
    Place,
    Report,
    Side,
    Verdict,
)
from obscura_jax.parity.programs_page import as_html, excerpt
from obscura_jax.parity.report import verdict_line
from obscura_jax.parity.trace import Source
from tests.support.program_reports import (
    CONSTANTS,
    DIFFERENT,
    EPSILON,
    EQUAL,
    NAN,
    REFUSED,
    moved,
)
from tests.test_parity_page import Reader, contrast

HOSTILE = "<script>alert('x')</script>"


def hostile(tmp_path):
    """Return a report in which every text is a script, also in the file that it shows."""
    file = tmp_path / f"{HOSTILE.replace('/', '_')}.py"
    file.write_text(f"before {HOSTILE}\nat {HOSTILE}\n\n")
    source = Source(str(file), 2, HOSTILE)
    place = Place(HOSTILE, HOSTILE, source, f"at {HOSTILE}", HOSTILE, (3,))
    names = (HOSTILE,)
    mend = Mend(HOSTILE, source, HOSTILE)
    finding = Finding(HOSTILE, place, place, names, names, names, HOSTILE, 1.0, 2, mend)
    side = Side(HOSTILE, HOSTILE, 5, 4, names, names, names)
    return Report(
        Verdict.DIFFERS,
        HOSTILE,
        (Output(HOSTILE, (3,), NAN, NAN, False),),
        (finding,),
        (Gradient(HOSTILE, HOSTILE, 1.0, False),),
        (finding,),
        (side, side),
        notes=names,
        operations=(Operation("PyTorch", 0, place, None), Operation("JAX", 0, place, None)),
    )


def test_the_page_escapes_everything(tmp_path):
    report = hostile(tmp_path)
    page = as_html(report)
    assert page.count("<script") == 1  # the search
    assert "alert('x')" not in page
    assert f"before {escape(HOSTILE)}" in page
    assert page.count(str(escape(HOSTILE))) > 40
    without = as_html(replace(report, operations=()))
    assert "<script" not in without


@pytest.mark.parametrize("report", [EQUAL, CONSTANTS, DIFFERENT, REFUSED])
def test_the_page_needs_no_other_file(report):
    page = as_html(report)
    reader = Reader(page)
    names = {name for _, attributes in reader.elements for name in attributes}
    assert not {"src", "href", "srcset", "action", "style", "onclick"} & names
    assert not re.search(r"@import|url\(|https?:", page)
    assert escape(verdict_line(report)) in page
    metas = [attributes for tag, attributes in reader.elements if tag == "meta"]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in metas
    kind = {0: "equal", 1: "differs", 2: "unknown"}[report.exit_code]
    assert ("p", {"class": f"verdict {kind}"}) in reader.elements


def test_the_page_shows_the_code_of_both_sides():
    page = as_html(replace(DIFFERENT, findings=(EPSILON,), gradient_findings=()))
    assert page.index("mend</strong>") < page.index("<pre ") < page.index("both use</dt>")
    assert page.count("<pre ") == 2
    marked = re.findall(r'class="marked"><i>▸(\d+)</i>([^<]*)<', page)
    assert marked == [
        ("31", "    normed = self.norm(x)"),
        ("46", "normed = (grouped - mean) / jnp.sqrt(var + self.eps)"),
    ]
    for names in (EPSILON.shared, EPSILON.torch_only, EPSILON.jax_only):
        assert f"<code>{names[0]}</code>" in page


def test_an_excerpt_is_the_line_alone_if_the_file_has_changed(tmp_path):
    file = tmp_path / "model.py"
    file.write_text("\n\n  def f(x):\n\t  y = x\n  \n    return y\n\n# end")
    place = Place("add", "", Source(str(file), 4, "f"), "y = x", "", ())
    assert [(line.number, line.text, line.marked) for line in excerpt(place)] == [
        (3, "def f(x):", False),
        (4, "    y = x", True),
        (5, "", False),
        (6, "  return y", False),
    ]
    for changed in (
        replace(place, code="y = x + 1"),
        replace(place, source=Source(str(file), 99, "f")),
        replace(place, source=Source("/nowhere/model.py", 4, "f")),
        replace(place, source=Source("<string>", 4, "f")),
    ):
        (line,) = excerpt(changed)
        assert (line.text, line.number) == (changed.code, changed.source.line)
    assert excerpt(replace(place, source=None)) == []
    assert excerpt(replace(place, source=Source("/nowhere/model.py", 4, "f"), code="")) == []


def test_the_page_lists_all_results():
    outputs, gradients, operations = Reader(as_html(DIFFERENT)).tables
    assert outputs[1:] == [
        ["logits", "differs", "1.7e-01", "1.7e-01", "3 \u00d7 11 \u00d7 37"],
        ["state", "equal", "2.2e-16", "NaN", "3 \u00d7 24"],
    ]
    assert [row[1] for row in gradients[1:]] == ["differs"] * 8 + ["equal"]
    assert [row[1] for row in operations[1:]] == ["≠", "=", "≠", "=", "=", "=", "=", "≠"]
    assert operations[7][2] == "99 · not in this list"
    assert operations[1][0] == ""
    assert operations[5][0] == "mul 3 \u00d7 37 \u00d7 242 · audio_torch.py:36 · layers.1"


def test_many_findings_are_folded():
    findings = tuple(moved(EPSILON, i) for i in range(100))
    page = as_html(replace(DIFFERENT, findings=findings, gradient_findings=()))
    assert page.count('<article class="card">') == 100
    assert page.index("<summary>92 more</summary>") > page.index("8. <code>") > 0
    assert page.index("<summary>92 more</summary>") < page.index("9. <code>")


def test_the_search_is_hidden_without_scripts():
    elements = Reader(as_html(DIFFERENT)).elements
    assert ("form", {"id": "search", "role": "search", "hidden": None}) in elements
    assert "search" not in as_html(EQUAL).split("</style>")[1]
    regions = [attributes for tag, attributes in elements if tag == "pre"]
    assert all(region["tabindex"] == "0" and region["aria-label"] for region in regions)


def test_contrast_meets_wcag_aa():
    page = as_html(DIFFERENT)
    style = page.split("<style>")[1].split("</style>")[0]
    colors = re.findall(r"--([\w-]+): (#\w{6});", style)
    light, dark = {}, {}
    for name, color in colors:
        (dark if name in light else light)[name] = color
    assert light.keys() == dark.keys() >= {"marked"}
    for theme in (light, dark):
        for text in ("text", "quiet", "good", "orange", "blue"):
            for ground in ("page", "panel"):
                assert contrast(theme[text], theme[ground]) >= 4.5, (text, ground)
        assert contrast(theme["text"], theme["marked"]) >= 4.5


def test_the_template_is_in_the_package():
    assert files("obscura_jax.parity").joinpath("programs.html").is_file()
