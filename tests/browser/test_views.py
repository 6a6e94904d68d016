"""Every view shows the numbers of the data, and the selection links the views."""

import numpy as np
import pytest

from tests.browser.fake_data import fake_data, log_softmax, numbers, pack
from tests.browser.shown import bars, decimal, percent, place, signed, texts, visible

VIEWS = ["tokens", "next", "lens", "attention", "ablation", "contributions"]
T, L, H, K = 7, 3, 2, 5
SIZES = {"layers": (L, L), "heads": (H, H), "vocab_size": 90, "stored": 40}


@pytest.fixture(scope="module")
def data():
    return fake_data(T, seed=3, **SIZES)


def arrays(data, *path, model=0):
    """Return an array of a model's data."""
    part = data["models"][model]
    for name in path:
        part = part[name]
    return numbers(part)


def words(data, ids):
    return [visible(data["texts"][str(i)]) for i in ids]


def test_every_view_is_there(opened, data):
    page = opened(data)
    assert page.locator("main section").evaluate_all("all => all.map((one) => one.id)") == VIEWS
    for view in VIEWS:
        assert len(page.locator(f"#{view} .lead").inner_text().split()) > 12
        assert "obscura_jax." in page.locator(f"#{view} .computed").inner_text()
    facts = page.locator("#facts").inner_text()
    assert facts.split(" · ")[1:] == ["width 32", "vocabulary 90", "context 256", "float32"]
    assert facts.startswith("tiny 3 blocks")


def test_what_a_page_says_and_requests_is_noticed(opened):
    page = opened.html(
        "<!doctype html><script>console.log('x'); fetch('https://example.invalid/y')"
        ".catch(() => { throw Error('z') })</script><p>",
        ready=False,
    )
    with page.context.expect_event("weberror"):
        pass
    assert opened.strangers() == ["https://example.invalid/y"]
    assert "x" in opened.said
    assert any("z" in text for text in opened.said)
    opened.said.clear()
    opened.requested.clear()


def test_a_chip_shows_its_token_and_its_probability(opened, data):
    page = opened(data)
    logprob, rank = arrays(data, "logprob"), arrays(data, "rank")
    ids, probs = arrays(data, "lens", "ids")[-1], arrays(data, "lens", "probs")[-1]
    chips = page.locator("#tokens .chip")
    assert chips.all_inner_texts() == [visible(token["text"]) for token in data["tokens"]]
    for t in range(1, T):
        chips.nth(t).click()
        said = page.locator("#tokens .detail").inner_text()
        token = data["tokens"][t]
        assert f"position {t} · id {token['id']} · bytes {token['bytes']}" in said
        assert f"probability {percent(np.exp(logprob[t - 1]))} ·" in said
        assert f"log-probability {decimal(logprob[t - 1])} ·" in said
        assert (place(rank[t - 1]) in said) == (rank[t - 1] > 0)
        assert f"log-probability {decimal(logprob[t])} ·" not in said
        expected = list(zip(words(data, ids[t - 1]), map(percent, probs[t - 1]), strict=True))
        assert bars(page, "#tokens") == expected
        assert page.url.endswith(f"#t={t}&l={L - 1}&h=0")
    chips.nth(0).click()
    assert "gives it no probability" in page.locator("#tokens .detail").inner_text()


def luminance(rgb):
    return np.asarray(rgb) @ [0.2126, 0.7152, 0.0722]


def test_more_probable_tokens_are_darker_and_their_text_is_readable(opened, data):
    page = opened(data)
    colors = page.locator("#tokens .chip").evaluate_all(
        "all => all.map((one) => [getComputedStyle(one).backgroundColor,"
        " getComputedStyle(one).color].map((c) => c.match(/\\d+/g).slice(0, 3).map(Number)))"
    )[1:]
    order = np.argsort(arrays(data, "logprob")[:-1])
    light = luminance([background for background, _ in colors])
    assert (np.diff(light[order]) <= 0).all()
    assert not (np.diff(light) <= 0).all()

    def linear(rgb):
        c = np.asarray(rgb) / 255
        return luminance(np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)) + 0.05

    for background, text in colors:
        ratio = linear(background) / linear(text)
        assert max(ratio, 1 / ratio) >= 4.5  # WCAG 2, level AA


@pytest.mark.parametrize("width", [360, 800, 1440])
def test_hovering_describes_another_token_and_moves_nothing(opened, data, width):
    page = opened(data, width=width)
    places = "all => all.map((one) => one.getBoundingClientRect().top + scrollY)"
    before = page.locator("section").evaluate_all(places)
    page.locator("#tokens .chip").nth(2).hover()
    assert "position 2 ·" in page.locator("#tokens .detail").inner_text()
    page.locator("#lens td").nth(3).hover()
    assert "(position 3)" in page.locator("#lens .detail").inner_text()
    page.locator("#attention .square canvas").hover()
    for t in range(T):
        page.locator("#tokens .chip").nth(t).click()
        assert page.locator("section").evaluate_all(places) == before
    page.locator("#contributions button").first.click()  # unfolds the heads, below all sections
    assert page.locator("section").evaluate_all(places) == before


def test_the_next_token_is_the_softmax_of_the_stored_logits(opened, data):
    page = opened(data, fragment="#t=2")
    stored = arrays(data, "next", "logits")[2].astype(float)
    probs = arrays(data, "lens", "probs")[-1, 2, 0] * np.exp(stored - stored[0])
    assert probs.sum() < 0.999
    expected = [percent(p) for p in probs[:20]]
    shown = bars(page, "#next")
    assert [number for _, number in shown] == expected
    assert [token for token, _ in shown] == words(data, arrays(data, "next", "ids")[2][:20])
    assert page.locator("#next .kept").inner_text() == "90 of 90 tokens kept"
    rest = percent(1 - probs[:20].sum())
    assert page.locator("#next .rest").inner_text() == f"70 more kept: {rest} together"
    page.locator("#tokens .chip").nth(3).click()
    assert [number for _, number in bars(page, "#next")] != expected


def test_the_lens_shows_every_layer_and_position(opened, data):
    page = opened(data)
    ids, probs = arrays(data, "lens", "ids"), arrays(data, "lens", "probs")
    ranks, logprobs = (arrays(data, "lens", f"target_{name}") for name in ("rank", "logprob"))
    rows = page.locator("#lens tbody tr")
    shown = [rows.nth(L - layer).locator("td").all_inner_texts() for layer in range(L + 1)]
    assert shown == [
        [
            f"{visible(data['texts'][str(ids[row, t, 0])])}\n"
            f"{percent(probs[row, t, 0])} {place(ranks[row, t])}"
            for t in range(T)
        ]
        for row in range(L + 1)
    ]
    assert shown != shown[::-1]
    heads = texts(page, "#lens tbody th")
    assert heads == ["block 2", "block 1", "block 0", "embeddings"]

    rows.nth(L).locator("td").nth(4).click()
    assert page.url.endswith("#t=4&l=-1&h=0")
    said = page.locator("#lens .detail").inner_text()
    assert f"{percent(np.exp(logprobs[0, 4]))}, {place(ranks[0, 4])}" in said
    assert bars(page, "#lens") == list(
        zip(words(data, ids[0, 4]), map(percent, probs[0, 4]), strict=True)
    )
    assert texts(page, "#attention h4") == ["Block 0, head 0"]


def test_attention_lists_what_the_selected_token_reads(opened, data):
    page = opened(data, fragment="#t=5&l=1&h=1")
    attention = arrays(data, "attention")
    line = attention[1, 1, 5] / 255
    order = np.argsort(-line[:6], kind="stable")[:K]
    parts = [f"{visible(data['tokens'][k]['text'])} {percent(line[k])}" for k in order]
    said = page.locator("#attention .reads").inner_text()
    assert said == f"{visible(data['tokens'][5]['text'])} reads {', '.join(parts)}"
    arcs = page.locator("#attention .arcs path")
    keys = arcs.evaluate_all("all => all.map((one) => Number(one.dataset.key))")
    assert keys == [k for k in range(6) if line[k] >= 0.01]
    widths = arcs.evaluate_all("all => all.map((one) => Number(one.getAttribute('stroke-width')))")
    assert np.allclose(widths, 0.8 + 8 * line[keys], atol=0.005)
    assert not np.allclose(widths, 0.8 + 8 * attention[1, 0, 5, keys] / 255, atol=0.005)


def test_the_map_of_a_head_is_darker_where_the_weight_is_larger(opened, data):
    page = opened(data, fragment="#l=2&h=1")
    pixels = page.locator("#attention .square canvas").evaluate(
        "(one) => Array.from(one.getContext('2d').getImageData(0, 0, one.width, one.height).data)"
    )
    pixels = np.reshape(pixels, (T, T, 4))
    assert (pixels[..., 3] == 255 * np.tril(np.ones((T, T)))).all()
    light, below = luminance(pixels[..., :3]), np.tril_indices(T)
    order = np.argsort(arrays(data, "attention")[2, 1][below], kind="stable")
    assert (np.diff(light[below][order]) <= 1e-9).all()
    assert not (np.diff(light.T[below][order]) <= 1e-9).all()


def test_heads_are_sorted_by_what_they_do(opened, data):
    page = opened(data)
    by_block = [f"{block}.{head}" for block in range(L) for head in range(H)]
    assert texts(page, "#attention .map span") == by_block
    scores = arrays(data, "head_scores", "first token")
    order = np.argsort(-scores.ravel(), kind="stable")
    page.locator("#attention select").select_option("first token")
    assert texts(page, "#attention .map span") == [
        f"{by_block[i]}: {decimal(scores.ravel()[i])}" for i in order
    ]
    assert "first token of the text" in page.locator("#attention .measure").inner_text()
    page.locator("#attention .map").nth(1).click()
    block, head = divmod(int(order[1]), H)
    assert page.url.endswith(f"&l={block}&h={head}")
    assert order.tolist() != sorted(order)
    page.locator("#attention select").select_option("induction")  # of which the text has no case
    assert texts(page, "#attention .map span") == [f"{name}: no case" for name in by_block]


def ablation_cells(page):
    rows = page.locator("#ablation tbody tr")
    return [rows.nth(block).locator("td").all_inner_texts() for block in range(L)]


def test_ablation_shows_the_change_for_every_part(opened, data):
    page = opened(data, fragment="#t=3")
    heads = arrays(data, "ablation", "heads")
    changes = np.concatenate([heads, arrays(data, "ablation", "feed_forward")[:, None]], 1)
    assert ablation_cells(page) == [[signed(x) for x in row] for row in changes[:, :, 3]]
    page.get_by_text("the mean over all tokens").click()
    means = changes.astype(float).mean(2)
    assert ablation_cells(page) == [[signed(x) for x in row] for row in means]
    assert ablation_cells(page) != [[signed(x) for x in row] for row in changes[:, :, 3]]


def test_a_part_that_is_chosen_shows_the_distribution_without_it(opened, data):
    page = opened(data, fragment="#t=3")
    logprob = arrays(data, "logprob")[3]
    cells = page.locator("#ablation tbody tr").nth(1).locator("td")
    for part, title in [
        (1, "Block 1 without head 1"),
        (H, "Block 1 without its feed-forward layer"),
    ]:
        cells.nth(part).click()
        assert page.locator("#ablation h4").inner_text() == title
        at = (1, part, 3) if part < H else (1, 3)
        kind = ("heads", "head") if part < H else ("feed_forward", "feed_forward")
        change = arrays(data, "ablation", kind[0])[at]
        said = page.locator("#ablation .without p").first.inner_text()
        assert said.endswith(f": {decimal(logprob)} → {decimal(logprob + change)}")
        without = zip(
            words(data, arrays(data, "ablation", f"{kind[1]}_ids")[at]),
            map(percent, arrays(data, "ablation", f"{kind[1]}_probs")[at]),
            strict=True,
        )
        with_it = zip(
            words(data, arrays(data, "lens", "ids")[-1, 3]),
            map(percent, arrays(data, "lens", "probs")[-1, 3]),
            strict=True,
        )
        assert bars(page, "#ablation") == [*with_it, *without]
    assert page.locator("#ablation td[aria-selected]").evaluate("one => one.cellIndex") == 1 + H
    page.locator("#selection select").nth(1).select_option("0")
    assert page.locator("#ablation h4").inner_text() == "Block 1 without head 0"


def test_contributions_sum_to_the_logit(opened, data):
    page = opened(data, fragment="#t=2")
    parts = {name: numbers(part)[..., 2] for name, part in data["models"][0]["attribution"].items()}
    attention = parts["heads"].astype(float).sum(1) + parts["attention_bias"]
    blocks = np.stack([attention, parts["feed_forward"]], 1).ravel()
    expected = [parts["embeddings"], *blocks, parts["final_norm"]]
    assert texts(page, "#contributions .parts > li > .part .number") == [
        signed(x) for x in expected
    ]
    logit = decimal(parts["logit"])
    total = page.locator("#contributions .total")
    assert total.inner_text() == f"sum of the parts {logit} = logit {logit}"
    page.get_by_role("button", name="block 1 attention").click()
    inside = [*parts["heads"][1], parts["attention_bias"][1]]
    assert texts(page, "#contributions .inside:visible .number") == [signed(x) for x in inside]
    norms = arrays(data, "residual", "norm")[:, 2]
    label = page.locator("#contributions svg").get_attribute("aria-label")
    assert label == f"norms: {', '.join(decimal(x, 1) for x in norms)}"


def test_parts_that_do_not_sum_to_the_logit_are_not_called_equal(opened):
    data = fake_data(T, seed=3, **SIZES)
    attribution = data["models"][0]["attribution"]
    attribution["logit"] = pack(numbers(attribution["logit"]) + 0.02, "float32")
    assert " ≠ logit " in opened(data).locator("#contributions .total").inner_text()


def test_the_made_data_is_a_softmax(data):
    logits, logprob = arrays(data, "next", "logits"), arrays(data, "logprob")
    best = arrays(data, "lens", "probs")[-1, :, 0]
    assert np.allclose(logprob[-1], np.log(best[-1]))
    assert not np.allclose(logprob, np.log(best))
    assert (np.exp(log_softmax(logits))[:, 0] > best).all()  # the tail has some of the probability
