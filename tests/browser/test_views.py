"""Every view shows the numbers of the data, of any size, without a word or a request."""

from tests.browser.fake_data import fake_data

VIEWS = ["tokens", "next", "lens", "attention", "ablation", "contributions"]


def test_every_view_is_there(opened):
    page = opened(fake_data())
    assert page.locator("main section").evaluate_all("all => all.map((one) => one.id)") == VIEWS
    for view in VIEWS:
        assert len(page.locator(f"#{view} .lead").inner_text().split()) > 12
        assert "obscura_jax.look." in page.locator(f"#{view} .computed").inner_text()


def test_what_a_page_says_and_requests_is_noticed(browser, opened, tmp_path):
    page = opened.html(
        "<!doctype html><script>console.log('x'); fetch('https://example.invalid/y')"
        ".catch(() => null); setTimeout(() => { throw Error('z') })</script><p id=a>",
        ready=False,
    )
    page.wait_for_timeout(300)
    assert opened.strangers() == ["https://example.invalid/y"]
    assert any("x" in text for text in opened.said)
    assert any("z" in text for text in opened.said)
    opened.said.clear()
    opened.requested.clear()
