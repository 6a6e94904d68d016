"""The page of `obscura look` is one file, in which text cannot become markup.

`make test-browser` tests what it shows.
"""

import base64
import hashlib
import json
import re

import pytest

from obscura_jax.look import assemble

CODE = {name: assemble.part(f"{name}.js") for name in assemble.MODULES}
IMPORT = re.compile(r'^import \{ ?([^}]*?),? ?\} from "\./(\w+)\.js";$', re.MULTILINE)
DATA = {"format": "obscura-look", "version": 1, "package": "1.2.3", "tokens": [{"text": "a"}]}


def in_element(page, opening):
    """Return the text of the element that starts with `opening`."""
    return page.split(opening)[1].split("</")[0]


def test_the_data_is_in_the_page():
    page = assemble.look_page(DATA)
    assert json.loads(in_element(page, 'id="look-data">')) == DATA
    assert "obscura_jax 1.2.3." in page


@pytest.mark.parametrize(
    "text",
    ["</script><b>", "<!--<script>", "&lt;", "\u2028\u2029", "\ud800", "{{ 7 * 7 }}", "\x00"],
)
def test_text_in_the_data_cannot_end_its_element(text):
    page = assemble.look_page(DATA | {"tokens": [{"text": text}]})
    stored = in_element(page, 'id="look-data">')
    assert not re.search("[<>&\u2028\u2029]", stored)
    assert json.loads(stored)["tokens"] == [{"text": text}]
    assert page.count("<script") == page.count("</script>") == 2
    assert "&lt;b&gt;" in assemble.look_page(DATA | {"package": "<b>"})


def test_numbers_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="not JSON compliant"):
        assemble.look_page(DATA | {"tokens": [float("nan")]})


def test_the_policy_allows_the_page_s_own_script_and_style():
    page = assemble.look_page(DATA)
    policy = re.search('Content-Security-Policy" content="([^"]*)"', page)[1].replace("&#39;", "'")
    for kind, opening in [("script", '<script type="module">'), ("style", "<style>")]:
        text = page.split(opening)[1].split(f"</{kind}>")[0]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
        other = base64.b64encode(hashlib.sha256(f"{text} ".encode()).digest()).decode()
        assert other not in policy
    assert "default-src 'none'" in policy
    assert "connect-src 'none'" in policy
    assert "unsafe" not in policy


def test_the_page_names_no_other_file():
    page = assemble.look_page(DATA)
    addresses = re.findall(r'(?<![\w-])(?:src|href)="([^"]*)"|url\((.*?)\)', page)
    assert addresses == [("data:,", "")]
    assert set(re.findall(r"https?://[^\s\"']+", page)) == {"http://www.w3.org/2000/svg"}


def wrong_imports(code):
    """Return the imports of a name that the other module does not export, or that comes later."""
    before, wrong = {}, []
    for module, text in code.items():
        for names, other in IMPORT.findall(text):
            exported = before.get(other, set())
            wrong += [f"{module}: {name} of {other}" for name in re.findall(r"\w+", names)
                      if name not in exported]  # fmt: skip
        before[module] = {found[2] for found in assemble.EXPORT.finditer(text)}
    return wrong


def test_modules_import_what_modules_before_them_export():
    assert wrong_imports(CODE) == []
    backward = dict(reversed(CODE.items()))
    assert len(wrong_imports(backward)) > 20
    assert wrong_imports(CODE | {"dom": CODE["dom"].replace("function reveal", "function show")})


def test_joined_modules_neither_import_nor_export():
    joined = assemble.joined_modules(assemble.MODULES)
    assert not re.search(r"^(import|export)\b", joined, re.MULTILINE)
    assert all(re.search(r"^(import|export)\b", text, re.MULTILINE) for text in CODE.values())


@pytest.mark.parametrize("name", [*(f"{name}.js" for name in CODE), "style.css", "views.css"])
def test_a_part_of_the_page_is_short_and_makes_no_markup(name):
    text = assemble.part(name)
    assert text.count("\n") < 250
    assert not re.search("innerHTML|outerHTML|insertAdjacentHTML|document.write|eval\\(", text)
    assert max(map(len, text.splitlines())) <= 120
