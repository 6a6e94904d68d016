"""One selection links the views: by mouse, keyboard, menus and the page's address."""

import pytest

from tests.browser.fake_data import fake_data
from tests.browser.shown import bars, percent, set_slider, texts

T, L, H = 6, 3, 2


FOCUSED = """() => {
    const one = document.activeElement;
    const shown = one.type === "radio" ? one.nextSibling : one;
    const view = one.closest("section, #selection")?.id;
    return { view, outline: getComputedStyle(shown).outlineStyle };
}"""


@pytest.fixture(scope="module")
def data():
    return fake_data(T, seed=5, layers=(L,), heads=(H,))


def selected(page):
    """Return the token, layer and head that every view has selected."""
    layer, token = page.locator("#lens td[aria-selected]").evaluate("one => one.at")
    block, head = page.locator("#ablation td[aria-selected]").evaluate("one => one.at")
    assert block == max(layer - 1, 0)
    chip = page.locator("#tokens .chip[aria-selected=true]")
    assert chip.evaluate("one => [...one.parentNode.children].indexOf(one)") == token
    heads = page.locator("#attention .map[aria-selected=true] span")
    assert heads.inner_text() == f"{block}.{head}"
    assert page.locator("#attention h4").inner_text() == f"Block {block}, head {head}"
    assert page.locator("#next .after").inner_text().count(f"(position {token})") == 1
    assert page.locator("#selection .which").first.inner_text().endswith(f"position {token}")
    assert page.locator("#selection select").nth(0).input_value() == str(layer - 1)
    assert page.locator("#selection select").nth(1).input_value() == str(head)
    return token, layer - 1, head


def address(page):
    return page.evaluate("location.hash")


def test_the_last_token_and_block_are_selected_first(opened, data):
    assert selected(opened(data)) == (T - 1, L - 1, 0)


@pytest.mark.parametrize(
    ("fragment", "expected"),
    [
        ("#t=3&l=1&h=1", (3, 1, 1)),
        ("#t=0&l=-1", (0, -1, 0)),
        ("#h=1&t=2", (2, L - 1, 1)),
        ("#t=6&l=3&h=2&m=1&f=1", (T - 1, L - 1, 0)),
        ("#t=-1&l=-2&h=-1", (T - 1, L - 1, 0)),
        ("#t=1e0&l=NaN&h=", (T - 1, L - 1, 0)),
        ("#t=99999999999999999999&<img src=x onerror=alert(1)>", (T - 1, L - 1, 0)),
        ("#__proto__=1&constructor=2&t=4", (4, L - 1, 0)),
    ],
)
def test_the_address_selects_and_nonsense_does_not(opened, data, fragment, expected):
    assert selected(opened(data, fragment=fragment)) == expected


def test_a_changed_address_selects(opened, data):
    page = opened(data)
    page.evaluate("location.hash = '#t=1&l=0&h=1'")
    page.locator("#attention h4", has_text="Block 0, head 1").wait_for()
    assert selected(page) == (1, 0, 1)
    page.evaluate("location.hash = '#t=77'")
    page.wait_for_function("location.hash === '#t=1&l=0&h=1'")  # what is out of range is ignored
    assert selected(page) == (1, 0, 1)


def test_arrows_move_between_tokens(opened, data):
    page = opened(data, fragment="#t=2")
    page.locator("#tokens .chip").nth(2).focus()
    for key, token in [("ArrowRight", 3), ("ArrowLeft", 2), ("ArrowLeft", 1), ("Home", 0),
                       ("ArrowLeft", 0), ("End", T - 1), ("ArrowRight", T - 1)]:  # fmt: skip
        page.keyboard.press(key)
        assert selected(page)[0] == token
        assert page.evaluate("document.activeElement.getAttribute('aria-selected')") == "true"


def test_arrows_follow_the_direction_of_the_text(opened):
    page = opened(
        fake_data(3, texts=["\u05e9\u05dc\u05d5\u05dd", " \u05d0", " \u05d1"]), fragment="#t=0"
    )
    chips = page.locator("#tokens .chip")
    first, second = (chips.nth(i).bounding_box()["x"] for i in range(2))
    assert first > second
    chips.first.focus()
    page.keyboard.press("ArrowLeft")
    assert address(page).startswith("#t=1&")
    page.keyboard.press("Home")
    assert address(page).startswith("#t=0&")


@pytest.mark.parametrize(
    ("cell", "presses", "expected"),
    [
        ("#lens td", ["ArrowUp", "ArrowRight", "ArrowRight"], (4, 2, 0)),
        ("#lens td", ["ArrowDown", "ArrowDown", "ArrowDown", "ArrowDown"], (2, -1, 0)),
        ("#lens td", ["End", "ArrowUp", "ArrowUp", "ArrowUp"], (T - 1, L - 1, 0)),
        ("#attention .map", ["ArrowRight", "ArrowDown"], (2, 2, 1)),
        ("#attention .map", ["ArrowUp", "ArrowLeft"], (2, 0, 0)),
        ("#ablation td", ["ArrowDown", "ArrowRight"], (2, 2, 1)),
        ("#ablation td", ["ArrowUp"], (2, 0, 0)),
    ],
)
def test_arrows_move_in_grids(opened, data, cell, presses, expected):
    page = opened(data, fragment="#t=2&l=1&h=0")
    page.locator(f"{cell}[tabindex='0']").focus()
    for key in presses:
        page.keyboard.press(key)
    assert selected(page) == expected


def test_every_view_is_reached_by_the_tab_key(opened, data):
    page = opened(data)
    reached = []
    while (at := page.evaluate(FOCUSED))["view"] or not reached:
        if at["view"]:
            assert at["outline"] != "none"
            reached.append(at["view"])
        page.keyboard.press("Tab")
    assert [*dict.fromkeys(reached)] == [
        "selection", "tokens", "next", "lens", "attention", "ablation", "contributions",
    ]  # fmt: skip
    assert reached.count("tokens") == 1
    assert reached.count("lens") == 2  # the choice of color, and the grid
    assert reached.count("ablation") == 2


def test_the_bar_selects(opened, data):
    page = opened(data)
    page.get_by_role("button", name="token before").click()
    page.locator("#selection select").nth(0).select_option("-1")
    page.locator("#selection select").nth(1).select_option("1")
    assert selected(page) == (T - 2, -1, 1)
    page.get_by_role("button", name="token after").click()
    assert page.get_by_role("button", name="token after").is_disabled()
    assert address(page) == f"#t={T - 1}&l=-1&h=1"


def test_pointing_at_the_map_selects_the_token_that_reads(opened, data):
    page = opened(data)
    box = page.locator("#attention .square canvas").bounding_box()
    at = {"x": box["width"] * 1.5 / T, "y": box["height"] * 3.5 / T}
    page.locator("#attention .square canvas").hover(position=at)
    readout = page.locator("#attention .readout").inner_text()
    assert "(3) reads" in readout
    assert "(1): " in readout
    page.locator("#attention .square canvas").click(position=at)
    assert selected(page) == (3, L - 1, 0)


def test_sliders_change_the_kept_tokens_and_reset(opened, data):
    page = opened(data, fragment="#t=1")
    before = bars(page, "#next")
    kept = page.locator("#next .kept")
    steps = [str(i) for i in [*range(1, 21), 25]]
    set_slider(page, "#set-topK", steps.index("3"))
    assert kept.inner_text() == "3 of 500 tokens kept"
    assert [number for _, number in bars(page, "#next")][3:] == ["\N{EM DASH}"] * 17
    set_slider(page, "#set-temperature", 0)
    assert kept.inner_text() == "1 of 500 tokens kept"
    assert bars(page, "#next")[0][1] == "100%"
    assert texts(page, "#next output.number") == ["0 (greedy)", "3", "off", "off"]
    page.get_by_role("button", name="reset").click()
    assert bars(page, "#next") == before
    assert kept.inner_text() == "500 of 500 tokens kept"
    set_slider(page, "#set-topP", 0.01)
    assert kept.inner_text() == "1 of 500 tokens kept"
    set_slider(page, "#set-topP", 1)
    set_slider(page, "#set-minP", 0.99)
    assert kept.inner_text() == "1 of 500 tokens kept"
    page.locator("#set-minP").focus()
    page.keyboard.press("Home")
    assert bars(page, "#next") == before
    page.locator("#tokens .chip").nth(2).click()
    assert bars(page, "#next") != before


def test_percentages(opened):
    assert [percent(p) for p in (1, 0.99951, 0.9949, 0.994, 0.5, 0.0994, 0.01, 0.002, 1e-5, 0)] == [
        "100%", "100%", "99.5%", "99.4%", "50%", "9.9%", "1.0%", "0.20%", "<0.01%", "0%",
    ]  # fmt: skip
