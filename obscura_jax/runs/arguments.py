"""The options of `obscura train`, generated from the fields of `TrainSettings`."""

import argparse
from dataclasses import fields
from typing import Any

from obscura_jax.arguments import add_hidden_alias, add_option, option_name
from obscura_jax.runs.settings import DEFAULT_SIZES, TrainSettings, setting_of


def add_settings_arguments(
    parser: argparse.ArgumentParser,
) -> dict[str, argparse._ArgumentGroup]:
    """Declare an option for each setting, and return the groups by their headings.

    Options that are not given are None; see `given_settings`.
    """
    groups: dict[str, argparse._ArgumentGroup] = {}
    for f in fields(TrainSettings):
        setting = setting_of(f.name)
        if setting.group not in groups:
            groups[setting.group] = parser.add_argument_group(setting.group)
        group = groups[setting.group]
        action = add_option(
            group,
            option_name(f.name),
            setting.help,
            setting.metavar,
            setting.kind.parse,
            default=DEFAULT_SIZES.get(f.name, f.default),
            choices=setting.kind.choices,
            nargs="+" if f.name == "text" else None,
        )
        action.default = None
        if setting.old:
            add_hidden_alias(group, option_name(setting.old), action)
    return groups


def given_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that were given as options."""
    values = {f.name: getattr(args, f.name) for f in fields(TrainSettings)}
    return {name: value for name, value in values.items() if value is not None}
