"""Command lines whose words may come before, between or after options."""

import argparse
from collections.abc import Sequence


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str], words: str) -> argparse.Namespace:
    """``parse_args``, with words of the list ``words`` after options, too (argparse's intermixed parsing knows no subcommands)."""
    known, rest = parser.parse_known_args(list(arguments))
    wrong = [word for word in rest if word.startswith("-") or not hasattr(known, words)]
    if wrong:
        parser.error(f"unknown argument {wrong[0]!r}")
    if rest:
        getattr(known, words).extend(rest)
    return known
