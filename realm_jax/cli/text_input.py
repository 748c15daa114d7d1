"""Owns reading a text that the user gives as an argument, a file or a stream, and refusing what is no UTF-8."""

import sys
from pathlib import Path

import typer

from realm_jax.cli.errors import CommandError


def read_text(argument: str | None, file: str | None, *, argument_name: str) -> str:
    """Return the text from the one place it was given in.

    Args:
        argument: the text itself.
        file: a path, or ``-`` for standard input; read as it is, line ends included.
        argument_name: how the user writes the argument, for messages.

    Raises:
        typer.BadParameter: not exactly one place.
        CommandError: bytes that are no UTF-8.
        OSError: the file cannot be read.
    """
    if (argument is None) == (file is None):
        state = "none" if argument is None else "both"
        raise typer.BadParameter(f"the text must be given once, as {argument_name} or with --file, got {state}")
    if argument is not None:
        check_utf8(argument, argument_name)
        return argument
    assert file is not None
    data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        where = "standard input" if file == "-" else file
        byte = data[error.start]
        raise CommandError(f"{where} must be valid UTF-8, got byte 0x{byte:02x} at offset {error.start}") from error


def check_utf8(text: str, name: str) -> None:
    """Refuse the lone surrogates in which Python keeps bytes that are no UTF-8.

    Raises:
        CommandError: names the first such byte.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        byte = ord(text[error.start]) & 0xFF
        message = f"{name} must be valid UTF-8, got byte 0x{byte:02x} at character {error.start + 1}"
        raise CommandError(message) from error
