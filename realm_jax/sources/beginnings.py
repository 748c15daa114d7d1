"""Owns reading as much of the beginnings of files on the Hugging Face hub as is needed, by HTTP range requests."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from realm_jax.sources.errors import SourceError
from realm_jax.sources.progress import Progress

Enough = Callable[[Path], bool]
"""Whether the beginning of a file that lies at this path is enough; may raise what is wrong with it."""

FIRST_BYTES = 1 << 20
"""What the first request asks for."""
MOST_BYTES = 1 << 27
"""Where reading ends; headers with vocabularies of 262,144 tokens take 16 MB."""
_GROWTH = 4  # so that reading a piece at a time costs few requests, and the last one brings little beyond need
_CONTENT_RANGE = re.compile(r"bytes (?P<start>\d+)-\d+/(?P<total>\d+)")


def read_beginning(
    repo: str, name: str, target: Path, enough: Enough, *, endpoint: str | None, progress: Progress | None
) -> None:
    """Write the first bytes of a file to `target`, more and more of them until they are `enough` or the whole file.

    Raises:
        SourceError: the server gives no parts of files, or `MOST_BYTES` are not enough.
    """
    size, total = 0, FIRST_BYTES
    while size < total:
        most = max(FIRST_BYTES, _GROWTH * size)
        if most > MOST_BYTES:
            raise SourceError(
                f"the header of hf:{repo}/{name} must end within its first {MOST_BYTES >> 20} MiB, and does not; "
                "download the file with `realm pull` and give its path"
            )
        total = _append(repo, name, target, (size, most), endpoint)
        size = target.stat().st_size
        if progress is not None:
            progress(f"Reading the header of {Path(name).name}", size, None)
        if enough(target):
            return


def _append(repo: str, name: str, target: Path, part: tuple[int, int], endpoint: str | None) -> int:
    """Append bytes `part[0]` to `part[1] - 1` of the file to `target`, as far as there are any; returns its size."""
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

    start, end = part
    headers = {**build_hf_headers(), "Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
    url, patience = hf_hub_url(repo, name, endpoint=endpoint), constants.HF_HUB_DOWNLOAD_TIMEOUT
    with http_stream_backoff("GET", url, headers=headers, timeout=patience) as response:
        hf_raise_for_status(response)
        told = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if response.status_code != 206 or told is None or int(told["start"]) != start:
            # The whole file would come, which may be hundreds of gigabytes.
            raise SourceError(
                f"hf:{repo}/{name} cannot be read in parts, its server answers status {response.status_code}; "
                "download it with `realm pull` and give its path"
            )
        _take(response.iter_bytes(), target, end - start, f"hf:{repo}/{name}")
    return int(told["total"])


def _take(chunks: Iterator[bytes], target: Path, most: int, model: str) -> None:
    """Append what comes, `most` bytes of it; a connection that breaks off has brought a shorter part, if any."""
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage] - of its HTTP library

    came = 0
    with target.open("ab") as file:
        try:
            for chunk in chunks:
                came += file.write(chunk[: most - came])
                if came == most:
                    break
        except HTTPError as error:
            if not came:
                raise SourceError(f"the connection broke off while {model} was read; run it again") from error
