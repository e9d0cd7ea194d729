"""Commands run in this process, for the tests of this folder."""

from __future__ import annotations

from cswap.cli.app import main

FEW = ("--methods", "cbp,random", "--ratios", "0,0.5,0.8", "--ratio-in", "units", "--no-latency")
"""A comparison that takes a second."""


def ran(capsys, *arguments: str) -> tuple[int, str, str]:
    """Status, output and errors of one command."""
    capsys.readouterr()
    status = main(list(arguments))
    out, err = capsys.readouterr()
    return status, out, err


def refused(capsys, arguments: list[str], *words: str, status: int = 2) -> str:
    """One line of error that holds each of the words, and no traceback; returns it."""
    got, out, err = ran(capsys, *arguments)
    errors = [line for line in err.splitlines() if not line.startswith("cswap: warning")]
    assert got == status, err
    assert len(errors) == 1, err
    assert "Traceback" not in out + err
    for word in words:
        assert word in errors[0], errors[0]
    return errors[0]


def compare_of(place, *more: str) -> list[str]:
    """A comparison of the network and data of `place`, into its folder `c`."""
    return [
        "compare", "--model", f"{place.factory}:colours", "--weights", str(place.weights), "--data", str(place.data), "--image-size",
        "8", "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5", "--per-class", "6", "--out", str(place.root / "c"), "--quiet", *more,
    ]  # fmt: skip


def told(capsys, arguments: list[str], status: int, *words: str) -> None:
    """A command ends with that status, and with one line of error that holds each of the words where it failed."""
    got, _, err = ran(capsys, *arguments)
    assert got == status, err
    assert len(err.splitlines()) == (status != 0), err
    assert all(w in err for w in words), err
