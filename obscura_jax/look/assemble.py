"""Assemble the page of `obscura look`: one file of HTML that never asks for another.

The page's parts are in `obscura_jax/look/page`. Its JavaScript is modules, which import names from
each other. A page in one file cannot import, so the modules are joined into one script: each
becomes a function that is called once and returns what the module exports.
"""

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

# A module comes after those it imports.
MODULES = (
    "dom",
    "words",
    "unpack",
    "colors",
    "state",
    "filters",
    "grid",
    "bars",
    "panels",
    "selection_bar",
    "tokens",
    "next_token",
    "lens",
    "attention_map",
    "attention_head",
    "attention",
    "ablation",
    "norms",
    "contributions",
    "main",
)
STYLES = ("style", "views")
IMPORT = re.compile(r'^import (\{[^}]*\}) from "\./(\w+)\.js";$', re.MULTILINE)
EXPORT = re.compile(r"^export ((?:async )?(?:function|const) (\w+))", re.MULTILINE)


def look_page(data: Mapping[str, Any], *, served: bool = False) -> str:
    """Return the page that shows `data`, which `look.page_data` describes.

    The page's content security policy allows its own script and style, and no request.

    Args:
        data: what JSON can hold, with packed arrays.
        served: allow requests to the server of the page, and add `live.js`, which makes them.

    Raises:
        ValueError: if a number in the data is not finite, which JSON cannot hold.
    """
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    script = joined_modules((*MODULES, "live") if served else MODULES)
    style = "\n".join(part(f"{name}.css") for name in STYLES)
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src {_hash_of(script)}",
            f"style-src {_hash_of(style)}",
            "img-src data:",
            "connect-src 'self'" if served else "connect-src 'none'",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    template = environment.from_string(part("look.html"))
    page: str = template.render(
        data=embedded_json(data),
        package=data.get("package", ""),
        policy=policy,
        script=script,
        served=served,
        style=style,
    )
    return page


def embedded_json(data: Mapping[str, Any]) -> str:
    """Return JSON in ASCII that cannot end the script element it is in, nor start another."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&]", lambda found: f"\\u{ord(found[0]):04x}", text)


def embedded_data(page: str) -> dict[str, Any]:
    """Return the data of a page that `look_page` made; ValueError if it has none."""
    found = re.search('<script type="application/json" id="look-data">(.*?)</script>', page)
    data = json.loads(found[1]) if found else None
    if not isinstance(data, dict):
        raise ValueError("this is not a page of obscura look")
    return data


def joined_modules(names: tuple[str, ...]) -> str:
    """Return one script with the code of all modules, in their order."""
    return "\n".join(_as_function(name, part(f"{name}.js")) for name in names)


def _as_function(name: str, code: str) -> str:
    exported = ", ".join(found[2] for found in EXPORT.finditer(code))
    code = IMPORT.sub(r"const \1 = of_\2;", code)
    code = EXPORT.sub(r"\1", code)
    return f"const of_{name} = (() => {{\n{code}return {{ {exported} }};\n}})();"


def part(name: str) -> str:
    """Return the text of a file in `obscura_jax/look/page`."""
    return files("obscura_jax.look").joinpath(f"page/{name}").read_text("utf-8")


def _hash_of(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"
