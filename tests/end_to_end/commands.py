"""Commands run in this process, for the tests of this folder."""

from __future__ import annotations

from cswap.cli.app import main


def ran(capsys, *arguments: str) -> tuple[int, str, str]:
    """Status, output and errors of one command."""
    capsys.readouterr()
    status = main(list(arguments))
    out, err = capsys.readouterr()
    return status, out, err


def refused(capsys, arguments: list[str], *words: str, status: int = 2) -> None:
    """One line of error that holds each of the words, and no traceback."""
    got, out, err = ran(capsys, *arguments)
    errors = [line for line in err.splitlines() if not line.startswith("cswap: warning")]
    assert got == status, err
    assert len(errors) == 1, err
    assert "Traceback" not in out + err
    for word in words:
        assert word in errors[0], errors[0]
