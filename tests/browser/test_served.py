"""A served page: the views follow what is typed, and only its own server is asked."""

import pytest

from tests.support.look_server import TOKEN, serving, tiny_viewer


@pytest.fixture(scope="module")
def address():
    with serving(tiny_viewer(), "A list is") as port:
        yield f"http://127.0.0.1:{port}/{TOKEN}/"


@pytest.fixture
def page(browser, address):
    """Return the page; at its end it may have said nothing, and asked only its server."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    context.set_default_timeout(0)  # a busy machine is slow, not wrong
    said, asked = [], []
    context.on("console", lambda message: said.append(message.text))
    context.on("weberror", lambda error: said.append(str(error.error)))
    page = context.new_page()
    page.on("request", lambda request: asked.append(request.url))
    page.asked = asked
    page.goto(address)
    page.locator("html[data-ready]").wait_for()
    yield page
    context.close()
    assert [url for url in asked if not url.startswith((address, "data:"))] == []
    assert [words for words in said if "400" not in words] == []


def ablations(page):
    """Wait for the table of ablations, and return it."""
    table = page.locator("#ablation [role=grid]")
    table.first.wait_for()
    return table.first


def test_the_first_text_has_all_views(page, address):
    assert page.locator("#live-text").input_value() == "A list is"
    ablations(page)
    assert page.locator("#tokens").inner_text().count("list") >= 1
    assert page.asked.count(f"{address}ablations") == 1
    assert page.asked.count(f"{address}look") == 0


def test_the_views_follow_what_is_typed(page, address):
    ablations(page)
    page.locator("#live-text").fill("The if statement")
    page.locator("#tokens").get_by_text("statement").first.wait_for()
    ablations(page)
    page.locator(".live-status:empty").wait_for(state="attached")
    assert page.locator("#tokens").get_by_text("list").count() == 0
    questions = [url for url in page.asked if url == f"{address}look"]
    assert len(questions) == 1
    # Sliders ask for nothing.
    before = len(page.asked)
    slider = page.locator("#next input[type=range]").first
    slider.focus()
    for _ in range(3):
        slider.press("ArrowRight")
    assert len(page.asked) == before


def test_a_text_that_does_not_fit_is_explained_and_the_views_stay(page):
    ablations(page)
    page.locator("#live-text").fill("")
    page.locator(".live-status").get_by_text("the text is empty").wait_for()
    assert page.locator("#tokens").get_by_text("list").count() >= 1
    page.locator("#live-text").fill("<img src=x onerror=alert(1)>")
    page.locator("#tokens").get_by_text("img").first.wait_for()
    assert page.locator("#tokens img").count() == 0
