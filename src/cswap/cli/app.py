"""The command `cswap`: options in, pipeline, tables or JSON out, one line for every error."""

from __future__ import annotations

import contextlib
import itertools
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from cswap._version import __version__
from cswap.cli import analyse, look
from cswap.cli.options import flattened
from cswap.cli.progress import Interrupted, say_error
from cswap.errors import CswapError, CswapWarning

INTERRUPTED = Interrupted.exit_status
app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
    help="Make a trained PyTorch network smaller in one shot, without fine-tuning, and say why each part could go.",
)  # fmt: skip
COMMANDS: dict[str, Callable[..., None]] = {
    "prune": analyse.prune, "apply": analyse.apply, "compare": analyse.compare,
    "eval": look.evaluate, "explain": look.explain, "report": look.report, "export": look.export, "support": look.support, "demo": look.demo,
}  # fmt: skip
for name, command in COMMANDS.items():
    app.command(name)(flattened(command))


def _version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Common options."""


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does: journal flushed, model untouched."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _own_warnings() -> Iterator[None]:
    """Our warnings are a line on standard error; those of the libraries are not the user's business."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", CswapWarning)
        warnings.showwarning = lambda message, *_rest, **_more: say_error(f"warning: {message}")
        yield


def _unexpected(error: Exception) -> int:
    with tempfile.NamedTemporaryFile("w", prefix="cswap-", suffix=".log", delete=False, encoding="utf-8") as log:
        traceback.print_exception(error, file=log)
    say_error(f"the run failed ({type(error).__name__}: {str(error)[:200]}); the log is {log.name}")
    return 1


def _came(error: Any, arguments: list[str] | None) -> str:
    """What was typed for the option that a usage error is about."""
    typed = sys.argv[1:] if arguments is None else arguments
    names = getattr(getattr(error, "param", None), "opts", [])
    values = [b for a, b in itertools.pairwise(typed) if a in names]
    values += [a.partition("=")[2] for a in typed if a.partition("=")[0] in names and "=" in a]
    return f", got {values[-1]!r}" if values else ""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 0 done, 1 the run failed, 2 wrong input, 130 interrupted."""
    try:
        with _terminated_like_interrupted(), _own_warnings():
            status = app(args=arguments, standalone_mode=False, prog_name="cswap")
        if status == INTERRUPTED:  # caught by typer, outside of a run
            say_error("interrupted")
        return status if isinstance(status, int) else 0
    except CswapError as error:
        say_error(str(error))
        return error.exit_status
    except KeyboardInterrupt:
        say_error("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        return 1
    except Exception as error:  # noqa: BLE001 — the last line of defence: never a traceback
        if hasattr(error, "format_message"):  # a usage error of the option parser
            say_error(f"{error.format_message()}{_came(error, arguments)} (cswap --help)")
            return 2
        if type(error).__name__ == "Abort":
            say_error("interrupted")
            return INTERRUPTED
        return int(error.exit_code) if hasattr(error, "exit_code") else _unexpected(error)


def run() -> NoReturn:
    """Console entry point."""
    sys.exit(main())
