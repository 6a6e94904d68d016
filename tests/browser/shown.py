"""Functions that say how the page must write tokens and numbers, and what a page shows."""

MINUS = "\N{MINUS SIGN}"


def visible(text):
    """Return a token's text with its white space visible."""
    return text.replace(" ", "·").replace("\n", "↵") or "∅"


def percent(probability):
    p = 100 * float(probability)
    if p >= 99.95:
        return "100%"
    if p >= 98.95 or 0.995 <= p < 9.95:
        return f"{p:.1f}%"
    if p >= 9.95:
        return f"{p:.0f}%"
    if p >= 0.01:
        return f"{p:.2f}%"
    return "<0.01%" if p > 0 else "0%"


def decimal(value, digits=2):
    text = f"{abs(float(value)):.{digits}f}"
    return f"{MINUS}{text}" if value < 0 and float(text) else text


def signed(value):
    text = decimal(value)
    return f"+{text}" if value > 0 and float(text) else text


def place(rank):
    return f"#{int(rank) + 1:,}"


def texts(page, selector):
    """Return the text of every element that the selector finds."""
    return page.locator(selector).all_inner_texts()


def bars(page, selector):
    """Return (token, number) for each visible bar."""
    rows = f"{selector} .bars li:not(.empty)"
    tokens, numbers = texts(page, f"{rows} .token"), texts(page, f"{rows} .number")
    return list(zip(tokens, numbers, strict=True))


def set_slider(page, selector, value):
    """Move a slider, as its user would."""
    page.locator(selector).evaluate(
        "(input, value) => { input.value = value; input.dispatchEvent(new Event('input')) }",
        str(value),
    )
