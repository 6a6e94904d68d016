"""Texts of any size and content, data of another version, and the page's look."""

import pytest

from obscura_jax.look.assemble import look_page
from tests.browser.conftest import SCREENSHOTS
from tests.browser.fake_data import fake_data
from tests.browser.shown import texts

HOSTILE = [
    "</script><img src=x onerror=alert(1)>",
    "<!--<script>",
    "&lt;b&gt;&amp;",
    "\u202eevil",
    "\u2028\u2029",
    "\u200d",
    "\u05e9\u05dc\u05d5\u05dd",
    "\U0001f469\u200d\U0001f52c",
    "\ufffd",
    "\x00\x1b\t",
    "",
    "${alert(1)}{{ 7 * 7 }}",
]


def test_markup_in_tokens_is_text(opened):
    data = fake_data(len(HOSTILE), texts=HOSTILE, layers=(2,), heads=(2,))
    data["models"][0]["name"] = HOSTILE[0]
    page = opened(data)
    for t in range(len(HOSTILE)):
        page.locator("#tokens .chip").nth(t).click()
    chips = texts(page, "#tokens .chip")
    assert chips[:3] == [text.replace(" ", "·") for text in HOSTILE[:3]]
    assert chips[7] == HOSTILE[7]
    assert chips[8] == "\u2039ef·bf·bd\u203a"
    assert chips[9:] == ["␀␛⇥", "∅", "${alert(1)}{{·7·*·7·}}"]
    assert HOSTILE[0] in page.locator("#facts").inner_text()
    assert HOSTILE[0] in page.title()
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 2
    assert page.locator("#tokens .chip").nth(3).evaluate("one => one.dir") == "auto"


def test_markup_would_run_if_the_page_did_not_escape_it(opened):
    markup = HOSTILE[0].replace("alert(1)", "said.id='ran'")
    page = opened.html(f"<!doctype html><p id=said></p><script>1{markup}", ready=False)
    page.locator("#ran").wait_for(state="attached")
    assert len(opened.strangers()) == 1
    opened.requested.clear()
    opened.said.clear()


@pytest.mark.parametrize("count", [1, 256])
@pytest.mark.parametrize("width", [360, 1600])
def test_any_number_of_tokens(opened, count, width):
    page = opened(fake_data(count, seed=9), width=width, height=640)
    assert page.locator("#tokens .chip").count() == count
    assert page.locator("#lens tbody tr").first.locator("td").count() == count
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.locator("#tokens .chip").first.click()
    assert page.locator("#lens td[aria-selected]").is_visible()
    assert page.locator("#attention .reads").inner_text().endswith(" 100%")


def test_a_large_model(opened):
    page = opened(fake_data(24, layers=(48,), heads=(25,)))
    assert page.locator("#attention .map").count() == 48 * 25
    assert page.locator("#ablation td").count() == 48 * 26
    box = page.locator("#attention .maps").bounding_box()
    chosen = page.locator("#attention .map[aria-selected=true]").bounding_box()
    assert box["y"] <= chosen["y"] <= box["y"] + box["height"] - chosen["height"]
    assert page.evaluate("document.documentElement.scrollWidth") == 1440


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 2}, "shows data of version 1, but its data has version 2; make it again"),
        ({"version": "<b>"}, "its data has version <b>; make it again"),
        ({"format": "other"}, "This page has no data of obscura look; make it again"),
    ],
)
def test_other_data_is_refused_in_one_sentence(opened, change, said):
    page = opened(fake_data(3) | change, ready=False)
    page.locator(".refusal").wait_for()
    assert said in page.locator("main").inner_text()
    assert page.locator("section").count() == 0
    assert not page.locator("#selection").is_visible()


def test_ablations_that_are_not_computed_yet(opened):
    data = fake_data(4)
    data["models"][0]["ablation"] = None
    page = opened(data)
    assert "The ablations are not computed yet." in page.locator("#ablation").inner_text()
    assert page.locator("#contributions .parts > li").count() == 10


def test_the_policy_refuses_scripts_that_are_not_the_page_s_own(opened):
    page = opened.html(look_page(fake_data(3)).replace("</main>", "</main><script>x = 1</script>"))
    assert page.evaluate("typeof x") == "undefined"
    assert len(opened.said) == 1
    assert "Content Security Policy" in opened.said.pop()


def test_light_and_dark_differ_and_follow_the_system(opened):
    page = opened(fake_data(6), color_scheme="light")
    cell = "one => getComputedStyle(one).backgroundColor"
    page_color = page.locator("body").evaluate(cell)
    chip = page.locator("#tokens .chip").nth(2)
    color = chip.evaluate(cell)
    page.emulate_media(color_scheme="dark")
    assert page.locator("body").evaluate(cell) != page_color
    page.wait_for_function("([one, old]) => getComputedStyle(one).backgroundColor !== old",
                           arg=[chip.element_handle(), color])  # fmt: skip
    page.emulate_media(color_scheme="light")
    page.wait_for_function("([one, old]) => getComputedStyle(one).backgroundColor === old",
                           arg=[chip.element_handle(), color])  # fmt: skip


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 800, 1440])
@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("text", {}),
        ("one-token", {"count": 1}),
        ("two-models", {"models": ("before", "after")}),
        ("training", {"frames": 4}),
    ],
)
def test_screenshots(opened, name, how, width, scheme):
    page = opened(fake_data(**how), width=width, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    path = SCREENSHOTS / f"{name}-{width}-{scheme}.png"
    page.screenshot(path=path, full_page=True)
    assert path.stat().st_size > 10_000


def test_a_token_of_broken_characters_is_shown_by_its_bytes(opened):
    page = opened(fake_data(len(HOSTILE), texts=HOSTILE, layers=(1,), heads=(1,)), fragment="#t=7")
    broken = "\u2039ef\u00b7bf\u00b7bd\u203a"
    assert broken in page.locator("#next .after").inner_text()
    assert broken in page.locator("#lens .detail").inner_text()
    assert page.locator("#lens thead th").nth(1 + 7).inner_text() == broken
    assert broken in page.locator("#contributions .two p").first.inner_text()
    page.locator("#tokens .chip").nth(6).click()
    assert broken not in page.locator("#lens .detail").inner_text()
