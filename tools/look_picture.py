"""Take the README's picture of the page that `obscura look` writes: the lens and attention.

    python tools/look_picture.py

It needs playwright and Chromium, whose path the variable CHROMIUM gives if it is elsewhere than in
/usr/bin.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

from obscura_jax import load_model, load_tokenizer
from obscura_jax.look import show

_TEXT = "The for statement is used to iterate over the elements of a sequence."
_PICTURE = Path(__file__).with_name("look.png")
_SELECTED = "#t=16&l=2&h=1"


def main() -> None:
    """Write the page of the shipped model, and take its picture."""
    from playwright.sync_api import sync_playwright

    model, params = load_model("tiny")
    page = show(model, params, _TEXT, tokenizer=load_tokenizer("tiny", model.cfg), name="tiny")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        path = Path(folder, "look.html")
        page.save(path)
        chromium = os.environ.get("CHROMIUM", "/usr/bin/chromium")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        shown = browser.new_page(viewport={"width": 1120, "height": 900})
        shown.goto(path.as_uri() + _SELECTED)
        shown.locator("html[data-ready]").wait_for()
        views: Any = [shown.locator(f"#{view}").bounding_box() for view in ("lens", "attention")]
        top, bottom = views[0]["y"], views[1]["y"] + views[1]["height"]
        clip: Any = {"x": 0, "y": top, "width": 1120, "height": bottom - top}
        shown.screenshot(path=_PICTURE, clip=clip, full_page=True)
        browser.close()
    print(_PICTURE)


if __name__ == "__main__":
    main()
