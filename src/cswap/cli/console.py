"""What the terminal gets: text of files that anyone may have written cannot steer it."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from typing import Any, TextIO

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


class _Stdout:
    """Where JSON goes: the standard output as it was before it was kept free of everything else."""

    held: TextIO | None = None

    @property
    def stream(self) -> TextIO:
        """The stream."""
        return self.held or sys.stdout

    @contextlib.contextmanager
    def kept_free(self, asked: bool) -> Iterator[None]:
        """What models and data print goes to standard error, where `asked`."""
        self.held = sys.stdout if asked else None
        try:
            with contextlib.redirect_stdout(sys.stderr if asked else sys.stdout):
                yield
        finally:
            self.held = None


STDOUT = _Stdout()
