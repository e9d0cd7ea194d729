"""Makes docs/options.md: every option of every command, read from the command itself.

python docs/options.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

PAGE = Path(__file__).resolve().parent / "options.md"
_HEAD = """# Options

Every command and option, as `cswap COMMAND --help` says them. Made by `python docs/options.py`.
"""


def _cell(text: Any) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


def page() -> str:
    """The page's text."""
    from cswap.cli.app import app

    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    lines = [_HEAD]
    for name, command in commands.items():
        lines += [
            f"## `cswap {name}`",
            "",
            command.help or "",
            "",
            "| option | default | what it does |",
            "| --- | --- | --- |",
        ]
        for p in command.params:
            if p.name == "help":
                continue
            shown = (
                ", ".join(f"`{o}`" for o in (*p.opts, *p.secondary_opts))
                if p.param_type_name == "option"
                else f"`{p.name.upper()}`"
            )
            usual = (
                "required"
                if p.required
                else ""
                if p.default is None or p.default is False or callable(p.default)
                else f"`{p.default}`"
            )
            lines.append(f"| {shown} | {usual} | {_cell(getattr(p, 'help', '') or '')} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
