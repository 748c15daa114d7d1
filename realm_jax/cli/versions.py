"""Owns the versions of installed packages, as `realm --version` and `realm doctor` report them."""

from importlib.metadata import PackageNotFoundError, version


def version_of(package: str) -> str | None:
    """Return an installed package's version, None when it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
