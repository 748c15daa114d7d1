"""Owns the frame of every command: exit codes, errors as one sentence, interrupts, pipes that close."""

import io
import os
import sys
from collections.abc import Sequence

EXIT_ERROR = 1
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
EXIT_PIPE_CLOSED = 141  # 128 + SIGPIPE
_DEBUG = "--debug"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `realm` and return its exit code.

    0 is success, 1 an error that one sentence on stderr tells, 2 a wrong command line, 130 an interrupt, 141 a reader
    that closed the pipe. ``--debug`` anywhere on the command line shows an error's traceback.

    Args:
        arguments: the command line without the program's name; None for the process's own.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = _DEBUG in words
    try:
        code = _run([word for word in words if word != _DEBUG])
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except BrokenPipeError:
        _discard_stdout()
        code = EXIT_PIPE_CLOSED
    except Exception as error:
        if debug:
            raise
        from realm_jax.cli.errors import sentence

        sys.stderr.write(f"realm: {sentence(error)}\n")
        code = EXIT_ERROR
    return code


def _run(words: list[str]) -> int:
    """Run the command and return its exit code; what typer does not expect comes out as an exception."""
    from realm_jax.cli.app import app

    _never_fail_to_print()
    try:
        app(args=words, prog_name="realm")
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # typer's answer to it is exit code 1
            raise stop.__context__ from None
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


def _never_fail_to_print() -> None:
    """Show what the terminal's encoding lacks as an escape: a model writes any character, a name holds any byte."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _discard_stdout() -> None:
    """Let the flush at exit go nowhere, so that Python does not complain about the closed pipe once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
