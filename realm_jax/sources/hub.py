"""Owns fetching GGUF files from the Hugging Face hub through huggingface_hub, its cache and its token."""

import contextlib
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from realm_jax.sources.beginnings import Enough, read_beginning
from realm_jax.sources.errors import SourceError
from realm_jax.sources.progress import Progress

_REFERENCE = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<file>[^:]+\.gguf)|:(?P<quantisation>[\w.-]+))?")
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


@dataclass(frozen=True, kw_only=True)
class HubReference:
    """What an ``hf:`` name asks for: a file, a quantisation, or (neither) the repository's only model."""

    repo: str
    file: str | None
    quantisation: str | None


def parse(model: str) -> HubReference:
    """Split ``hf:owner/repo/file.gguf``, ``hf:owner/repo:Q4_K_M`` or ``hf:owner/repo``.

    Raises:
        SourceError: the text has none of these forms.
    """
    match = _REFERENCE.fullmatch(model)
    if match is None:
        raise SourceError(f"a hub model must be written hf:owner/repo/file.gguf or hf:owner/repo:Q4_K_M, got {model!r}")
    return HubReference(**match.groupdict())


def choose(names: Sequence[str], reference: HubReference) -> str:
    """Pick from a repository's file names the first file of the model that the reference asks for.

    The quantisation must be a word of the path: after its start or one of ``- . / _``, before one of ``- . /``, in
    any case of letters; projector files (mmproj) are no language models; a split model counts once.

    Raises:
        SourceError: none or several fit; lists what there is.
    """
    models = sorted(n for n in names if n.endswith(".gguf") and "mmproj" not in n.lower() and _shard_number(n) == 1)
    wanted = reference.quantisation
    fitting = models
    if wanted is not None:
        pattern = re.compile(rf"(?:^|[-./_]){re.escape(wanted)}(?=$|[-./])", re.IGNORECASE)
        fitting = [name for name in models if pattern.search(name)]
    if len(fitting) == 1:
        return fitting[0]
    rule = f"{reference.repo} must hold one GGUF model" + (f" of quantisation {wanted}" if wanted else "")
    listed = ", ".join(fitting or models) or "no .gguf file"
    state = "several fit" if fitting else "it holds"
    raise SourceError(f"{rule}, {state}: {listed}; name one as hf:{reference.repo}/FILE")


def _shard_number(name: str) -> int:
    match = _SHARD.fullmatch(name)
    return int(match["number"]) if match else 1


def shards(name: str) -> list[str]:
    """Return the names of all files of a split model in order, or the name itself when it is whole."""
    match = _SHARD.fullmatch(name)
    if match is None:
        return [name]
    count = int(match["count"])
    return [f"{match['stem']}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]


def fetch(
    model: str,
    *,
    cache_dir: Path | None,
    offline: bool,
    refresh: bool,
    progress: Progress | None,
    endpoint: str | None = None,
) -> Path:
    """Return the local path of a hub model's (first) file, downloading what the hub's cache lacks.

    Args:
        model: an ``hf:`` name.
        cache_dir: None for the hub's own cache, shared with other programs.
        offline: use the cache alone.
        refresh: ask the hub for a newer version even when the cache holds the model.
        progress: told the bytes of each file.
        endpoint: the hub's address, None for the public one.

    Raises:
        SourceError: a wrong name, a closed repository, no network and no copy, an unwritable cache.
    """

    def bring(repo: str, name: str) -> Path:
        return _download(repo, name, cache_dir=cache_dir, endpoint=endpoint, progress=progress)

    ways = {"offline": offline, "refresh": refresh, "progress": progress, "endpoint": endpoint}
    return _cached_or(bring, model, cache_dir=cache_dir, **ways)


def fetch_beginning(
    model: str,
    folder: Path,
    enough: Enough,
    *,
    cache_dir: Path | None,
    offline: bool,
    progress: Progress | None,
    endpoint: str | None = None,
) -> Path:
    """`fetch`, except that what the hub's cache lacks is not downloaded: the files' beginnings come to `folder`.

    `enough` says of each file whether as much of it as there is will do. Nothing is added to the cache.
    """

    def bring(repo: str, name: str) -> Path:
        paths = [(shard, folder / Path(shard).name) for shard in shards(name)]
        for shard, path in paths:
            read_beginning(repo, shard, path, enough, endpoint=endpoint, progress=progress)
        return paths[0][1]

    ways = {"offline": offline, "refresh": False, "progress": progress, "endpoint": endpoint}
    return _cached_or(bring, model, cache_dir=cache_dir, **ways)


def _cached_or(
    bring: Callable[[str, str], Path],
    model: str,
    *,
    cache_dir: Path | None,
    offline: bool,
    refresh: bool,
    progress: Progress | None,
    endpoint: str | None,
) -> Path:
    """The model's path in the cache, or what `bring(repo, name)` returns; see `fetch`."""
    reference = parse(model)
    try:
        import huggingface_hub
    except ImportError as error:
        raise SourceError(f"{model} needs the package huggingface_hub; install it, or give a path") from error
    with _one_sentence(reference), _quiet(huggingface_hub.logging):
        cached = None if refresh else _from_cache(reference, cache_dir)
        if cached is not None:
            return cached
        if offline:
            raise SourceError(f"{model} is not in the Hugging Face cache and downloading is off; run it once online")
        if progress is not None:
            progress("Asking the Hugging Face hub", 0, None)
        return bring(reference.repo, reference.file or choose(_listed(reference.repo, endpoint), reference))


@contextlib.contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Keep the hub's notes on its retries out of the terminal; what they lead to is said in the error."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _from_cache(reference: HubReference, cache_dir: Path | None) -> Path | None:
    """Find the model in the cache without a word to the hub, None if it is not whole there."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    names = _cached_names(reference.repo, cache_dir) if reference.file is None else []
    if reference.file is None and not names:
        return None
    try:
        parts = shards(reference.file or choose(names, reference))
        files = [hf_hub_download(reference.repo, n, cache_dir=cache_dir, local_files_only=True) for n in parts]
    except (LocalEntryNotFoundError, SourceError):
        return None
    return Path(files[0])


def _listed(repo: str, endpoint: str | None) -> list[str]:
    from huggingface_hub import HfApi

    return HfApi(endpoint=endpoint).list_repo_files(repo)


def _download(repo: str, name: str, *, cache_dir: Path | None, endpoint: str | None, progress: Progress | None) -> Path:
    """Download all files of one model and return the first one's path."""
    from huggingface_hub import hf_hub_download

    paths = []
    for shard in shards(name):
        bar = _bar_class(f"Downloading {Path(shard).name}", progress)
        paths.append(hf_hub_download(repo, shard, cache_dir=cache_dir, endpoint=endpoint, tqdm_class=bar))
    return Path(paths[0])


def _cached_names(repo: str, cache_dir: Path | None) -> list[str]:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        cached = scan_cache_dir(cache_dir).repos
    except CacheNotFound:
        return []
    revisions = [r for c in cached if c.repo_id == repo and c.repo_type == "model" for r in c.revisions]
    revisions.sort(key=lambda revision: revision.last_modified)
    return [str(f.file_path.relative_to(r.snapshot_path)) for r in revisions[-1:] for f in r.files]


def _unreachable(repo: str) -> str:
    return (
        f"the Hugging Face hub cannot be reached to fetch hf:{repo}; "
        "connect to the network, or give the path of a .gguf file"
    )


@contextlib.contextmanager
def _one_sentence(reference: HubReference) -> Iterator[None]:
    """Turn what huggingface_hub raises into one sentence that names the remedy."""
    from huggingface_hub import errors

    repo = reference.repo
    try:
        yield
    except errors.GatedRepoError as error:
        text = f"hf:{repo} is gated; accept its terms on the hub's page and log in with `hf auth login`"
        raise SourceError(text) from error
    except errors.RepositoryNotFoundError as error:
        text = f"hf:{repo} does not exist or is private; check the name, or log in with `hf auth login`"
        raise SourceError(text) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise SourceError(_unreachable(repo)) from error
    except errors.EntryNotFoundError as error:
        raise SourceError(f"hf:{repo} holds no file {reference.file}; look its files up on the hub's page") from error
    except (errors.HfHubHTTPError, errors.HFValidationError) as error:
        raise SourceError(f"hf:{repo} cannot be fetched: {str(error).strip().splitlines()[0]}") from error
    except errors.HTTPError as error:  # pyright: ignore[reportPrivateImportUsage] - of whichever HTTP library it uses
        raise SourceError(_unreachable(repo)) from error
    except OSError as error:
        text = f"the Hugging Face cache must be writable to download hf:{repo} ({error.strerror or error})"
        raise SourceError(f"{text}; set HF_HOME or name another cache folder") from error


def _bar_class(label: str, progress: Progress | None) -> type[Any]:
    """Make the class of progress bars that huggingface_hub drives: it draws nothing and calls progress."""
    from tqdm import tqdm

    class Bar(tqdm):
        monitor_interval = 0  # no watching thread: nothing is drawn

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "file": io.StringIO(), "disable": False})

        def display(self, msg: str | None = None, pos: int | None = None) -> bool:
            if progress is not None:
                progress(label, int(self.n), None if self.total is None else int(self.total))
            return True

    return Bar
