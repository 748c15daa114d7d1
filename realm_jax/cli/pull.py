"""Owns `realm pull`: fetching a model ahead of its use."""

from realm_jax.cli import options
from realm_jax.cli.console import human_bytes, print_json
from realm_jax.cli.model_file import locate_model
from realm_jax.sources import CATALOGUE


def pull(
    model: options.Model,
    json: options.Json = False,
    cache_dir: options.CacheDir = None,
    offline: options.Offline = False,
) -> None:
    """Download a model.

    For an hf: model the newest version. Prints the path of its (first) file.
    """
    path = locate_model(model, cache_dir=cache_dir, offline=offline, refresh=not offline)
    size = path.stat().st_size
    packaged = CATALOGUE.get(model)
    licence = packaged.licence if packaged else None
    if json:
        print_json({"model": model, "path": str(path), "bytes": size, "licence": licence})
        return
    print(path)
    print(f"{human_bytes(size)}" + (f", {licence}" if licence else ""))
