"""The reference of the command line, from the parsers of the commands."""

import argparse
import re
from collections.abc import Iterator

from obscura_jax.cli.main import command_parser


def as_markdown() -> str:
    """Return one section per command: its usage, and a table per group of its arguments."""
    (commands,) = (
        action
        for action in command_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    helps = {choice.dest: choice.help or "" for choice in commands._choices_actions}
    lines: list[str] = []
    for name, parser in commands.choices.items():
        lines += [f"## obscura {name}", "", _sentence(helps[name]), "", *_usage(parser), ""]
        for group in parser._action_groups:
            lines += _group(group)
        if parser.epilog:
            lines += [_sentence(parser.epilog), ""]
    return "\n".join(lines)


def _usage(parser: argparse.ArgumentParser) -> list[str]:
    formatter = argparse.HelpFormatter(parser.prog, width=88)
    formatter.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups, "")
    return ["```text", formatter.format_help().strip(), "```"]


def _group(group: argparse._ArgumentGroup) -> Iterator[str]:
    """Yield a heading if the command has named the group, and a table of its arguments."""
    shown = [a for a in group._group_actions if a.help != argparse.SUPPRESS and a.dest != "help"]
    if not shown:
        return
    if group.title not in ("positional arguments", "options"):
        yield from (f"**{_sentence(group.title or '').rstrip('.')}**", "")
    yield from ("| argument | meaning |", "|---|---|")
    for action in shown:
        formatter = argparse.HelpFormatter("obscura")
        meaning = formatter._expand_help(action) if action.help else ""
        yield f"| {_words(action, formatter)} | {_escaped(meaning)} |"
    yield ""


def _words(action: argparse.Action, formatter: argparse.HelpFormatter) -> str:
    """Return the spellings of an argument, with the name of its value, as code."""
    if not action.option_strings:
        spellings = [formatter._metavar_formatter(action, action.dest)(1)[0]]
    elif action.nargs == 0:
        spellings = list(action.option_strings)
    else:
        value = formatter._format_args(action, action.dest.upper())
        spellings = [f"{option} {value}" for option in action.option_strings]
    return ", ".join(f"`{_escaped(spelling)}`" for spelling in spellings)


def _escaped(text: str) -> str:
    """Return text for a cell of a table."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "." * (not text.endswith("."))
