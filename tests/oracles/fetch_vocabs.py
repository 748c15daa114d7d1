"""Fetches llama.cpp's vocabulary files with their recorded token ids out of the llama-cpp-python source package."""

import argparse
import hashlib
import json
import shutil
import tarfile
import tempfile
import urllib.parse
import urllib.request
from pathlib import Path
from typing import IO

NAME = "llama_cpp_python-0.3.36"
INDEX = "https://pypi.org/simple"
INDEX_FORMAT = "application/vnd.pypi.simple.v1+json"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
FOLDER = f"{NAME}/vendor/llama.cpp/models"
DEFAULT_CACHE = Path("~/.cache/realm-jax/vocabs").expanduser()


def find(index: str) -> str:
    """Ask a package index (PEP 691) for the address of the source package."""
    page = f"{index.rstrip('/')}/llama-cpp-python/"
    request = urllib.request.Request(page, headers={"Accept": INDEX_FORMAT})
    with urllib.request.urlopen(request, timeout=60) as response:
        files = json.load(response)["files"]
    for file in files:
        if file["hashes"].get("sha256") == SHA256:
            return urllib.parse.urljoin(page, file["url"])
    raise SystemExit(f"{page} must list {NAME}.tar.gz with sha256 {SHA256}; choose another --index")


def download(url: str, target: IO[bytes]) -> None:
    """Write the source package (77 MB) to `target`."""
    with urllib.request.urlopen(url, timeout=60) as response:
        shutil.copyfileobj(response, target)


def check(archive: Path) -> None:
    """Stop unless the package is the one that the tests were written against."""
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        raise SystemExit(f"the sha256 of {archive} must be {SHA256}, got {digest}; delete the file and fetch it again")


def unpack(archive: Path, cache: Path) -> int:
    """Copy `ggml-vocab-*` (.gguf, .gguf.inp, .gguf.out) and the chat templates into `cache`; return how many."""
    count = 0
    with tarfile.open(archive) as package:
        for member in package:
            path = Path(member.name)
            wanted = path.name.startswith("ggml-vocab-") or path.suffix == ".jinja"
            if member.isfile() and wanted and path.is_relative_to(FOLDER) and (source := package.extractfile(member)):
                target = cache / path.relative_to(FOLDER)
                target.parent.mkdir(parents=True, exist_ok=True)
                with source, target.open("wb") as file:
                    shutil.copyfileobj(source, file)
                count += 1
    return count


def main() -> None:
    """Fetch, check, unpack."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="folder for the files (%(default)s)")
    parser.add_argument("--index", default=INDEX, help="package index to download from (%(default)s)")
    parser.add_argument("--archive", type=Path, help=f"a copy of {NAME}.tar.gz that is here already")
    arguments = parser.parse_args()
    if arguments.archive:
        check(arguments.archive)
        count = unpack(arguments.archive, arguments.cache)
    else:
        with tempfile.NamedTemporaryFile(suffix=".tar.gz") as file:
            download(find(arguments.index), file)
            file.flush()
            check(Path(file.name))
            count = unpack(Path(file.name), arguments.cache)
    print(f"{count} files in {arguments.cache}")


if __name__ == "__main__":
    main()
