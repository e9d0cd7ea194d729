"""What the terminal gets: text of files that anyone may have written cannot steer it."""

from __future__ import annotations

import re
from typing import Any

import rich.console
from rich.text import Text

_STEERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def shown(text: str) -> str:
    """Control characters (but newline and tab), changes of direction and lone surrogates as their escapes."""
    return _STEERS.sub(lambda m: ascii(m[0])[1:-1], text)


class Console(rich.console.Console):
    """Rich's console, to which every string comes through `shown`."""

    def render_str(self, text: str, **how: Any) -> Text:
        return super().render_str(shown(text), **how)
