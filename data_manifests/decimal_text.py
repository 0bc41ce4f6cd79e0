"""Numbers in tables and on the command line, read as people read them."""

import re

_DECIMAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


def decimal(text: str) -> float | None:
    """Return the number that a text holds in decimal digits, such as ``-1.5e3``, or None.

    Other texts that ``float`` accepts, such as ``1_0``, digits of other scripts and ``inf``, are no numbers.
    """
    return float(text) if _DECIMAL.fullmatch(text) else None
