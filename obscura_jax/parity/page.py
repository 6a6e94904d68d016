"""Fill in the template of a page that needs no other file and no network.

Every template is in `obscura_jax/parity` or below, and includes `page_style.css`.
"""

from importlib.resources import files
from typing import Any


def page(template: str, **values: Any) -> str:
    """Return the page of a template, such as "gpt/page.html"; all values are escaped."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True,
        loader=jinja2.FunctionLoader(_text_of),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    rendered: str = environment.get_template(template).render(values)
    return rendered


def _text_of(name: str) -> str:
    return files(__package__).joinpath(name).read_text("utf-8")
