"""Two models side by side, and a model's frames while it is trained."""

import numpy as np
import pytest

from tests.browser.fake_data import fake_data, numbers
from tests.browser.shown import percent, set_slider, signed, texts, visible

T = 5
PAIR = {"models": ("before", "after"), "layers": (2, 2), "heads": (2, 3), "vocab_size": 60}


def of(data, m, *path):
    part = data["models"][m]
    for name in path:
        part = part[name]
    return numbers(part)


def test_both_models_and_their_difference_are_shown(opened):
    data = fake_data(T, seed=7, **PAIR)
    page = opened(data, fragment="#t=3&l=1&h=2")
    assert texts(page, "#tokens h3") == ["A · before", "B · after", "Difference: B minus A"]
    change = of(data, 1, "logprob") - of(data, 0, "logprob")
    said = page.locator("#tokens .difference .detail").inner_text()
    assert f"{signed(change[2])}: {'B' if change[2] >= 0 else 'A'} finds it more probable" in said
    assert signed(-change[2]) not in said
    lens = [of(data, m, "lens", "target_logprob").astype(float) for m in (0, 1)]
    rows = page.locator("#lens .difference tbody tr")
    for layer in range(3):
        shown = rows.nth(2 - layer).locator("td").all_inner_texts()
        expected = [signed(x) for x in (lens[1] - lens[0])[layer]]
        assert shown[:-1] == expected[:-1]  # the models may end with different tokens
    assert texts(page, "#attention h4") == ["Block 1, head 1", "Block 1, head 2"]


def test_one_of_two_models_can_be_shown_alone(opened):
    page = opened(fake_data(T, seed=7, **PAIR))
    assert page.locator("#lens .panel:visible").count() == 3
    page.locator("#selection").get_by_text("B · after").click()
    assert texts(page, "#lens .panel:visible h3") == ["B · after"]
    assert "&m=1" in page.url
    page.locator("#selection").get_by_text("both").click()
    assert page.locator("#lens .panel:visible").count() == 3
    assert "&m=" not in page.url


def test_layers_of_models_with_other_depths_are_not_compared(opened):
    page = opened(fake_data(T, seed=7, **PAIR | {"layers": (2, 4)}), fragment="#l=3")
    assert page.locator("#lens .panel").count() == 2
    said = "A has 2 blocks and B has 4, so their layers are not compared."
    assert said in page.locator("#lens").inner_text()
    assert texts(page, "#attention h4") == ["Block 1, head 0", "Block 3, head 0"]


@pytest.mark.parametrize(("width", "columns"), [(360, 1), (1440, 2)])
def test_models_are_side_by_side_if_there_is_room(opened, width, columns):
    page = opened(fake_data(T, seed=7, **PAIR), width=width)
    tops = page.locator("#next .panel").evaluate_all(
        "all => all.map((one) => one.getBoundingClientRect().top)"
    )
    assert len(set(tops)) == 3 - columns


def lens_top(data, frame):
    lens = data["models"][0]["frames"][frame]["lens"]
    ids, probs = numbers(lens["ids"])[-1, :, 0], numbers(lens["probs"])[-1, :, 0]
    return [(visible(data["texts"][str(i)]), percent(p)) for i, p in zip(ids, probs, strict=True)]


def shown_top(page):
    cells = page.locator("#lens tbody tr").first.locator("td").all_inner_texts()
    return [tuple(cell.replace("\n", " ").split(" ")[:2]) for cell in cells]


def test_the_slider_shows_earlier_steps_of_training(opened):
    data = fake_data(T, seed=8, frames=3, layers=(2,), heads=(2,))
    page = opened(data)
    note = page.locator("#ablation .note-last")
    assert shown_top(page) == lens_top(data, 2) != lens_top(data, 0)
    assert page.locator("#selection output").inner_text() == "step 200"
    assert not note.is_visible()
    colors = "all => all.map((one) => one.style.backgroundColor)"
    before = page.locator("#tokens .chip").evaluate_all(colors)
    set_slider(page, "#selection input[type=range]", 0)
    assert shown_top(page) == lens_top(data, 0)
    assert page.locator("#selection output").inner_text() == "step 0"
    assert note.is_visible()
    assert page.locator("#tokens .chip").evaluate_all(colors) != before
    assert page.url.endswith("&f=0")
    attention = numbers(data["models"][0]["frames"][0]["attention"])[1, 0, T - 1] / 255
    reads = page.locator("#attention .reads").inner_text()
    assert percent(attention.max()) in reads
    logprob = numbers(data["models"][0]["frames"][0]["logprob"])[T - 2]
    assert percent(np.exp(logprob)) in page.locator("#tokens .detail").inner_text()


def test_playing_runs_to_the_last_step_and_stops(opened):
    page = opened(fake_data(T, seed=8, frames=4))
    page.get_by_role("button", name="play").click()
    page.get_by_role("button", name="pause").wait_for()
    page.locator("#selection output", has_text="step 300").wait_for()
    page.get_by_role("button", name="play").wait_for()


def test_nothing_moves_by_itself_for_readers_who_ask_for_less_motion(opened):
    page = opened(fake_data(T, seed=8, frames=4), reduced_motion="reduce")
    button = page.get_by_role("button", name="next step")
    for step in (0, 100, 200, 300, 0):
        button.click()
        assert page.locator("#selection output").inner_text() == f"step {step}"
    duration = "one => getComputedStyle(one).transitionDuration"
    assert page.locator("#next .bar").first.evaluate(duration) == "0s"
    page.emulate_media(reduced_motion="no-preference")
    assert page.locator("#next .bar").first.evaluate(duration) != "0s"


def test_a_model_without_frames_has_no_slider(opened):
    assert opened(fake_data(T)).locator("#selection input[type=range]").count() == 0
