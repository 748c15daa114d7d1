"""What a batch job asks of a Ray cluster, and how its lines are cut into blocks; needs no Ray."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

from realm_jax.jobs.lines import BatchLine

# RFC 9113, 3.4: what a client begins with, an empty SETTINGS frame behind it; the server begins with SETTINGS too.
_SETTINGS = b"\x04"
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + _SETTINGS + bytes(5)
_TLS_ALERT = b"\x15"  # RFC 8446, 5.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class RayConfig:
    """Where a job runs.

    Attributes:
        address: of a running cluster, "auto" for the one that this machine is in; None for a cluster of this machine
            alone, which ends with the job.
        workers: processes with a model each; None for one for each GPU, or each machine of a cluster without GPUs.
        gpus: of each worker, 0 or 1; None for 1 where the cluster has any.
        cpus: threads of each worker, which it computes with and which Ray counts; None to compute with all CPUs of a
            machine, while Ray counts one.
    """

    address: str | None = None
    workers: int | None = None
    gpus: int | None = None
    cpus: int | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers must be at least 1, got {self.workers}")
        if self.gpus not in (None, 0, 1):
            raise ValueError(f"gpus of a worker must be 0 or 1, got {self.gpus}; raise workers to use more of them")


def require_reachable(address: str, seconds: float = 10.0) -> None:
    """Raise ConnectionError unless a server of gRPC, as Ray's are, answers at an address within so many seconds.

    Ray itself would try for minutes or for ever. Only `host:port` can be asked, with or without `ray://`.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=seconds) as connection:
            connection.sendall(_HTTP2_PREFACE)
            answer = connection.recv(9)
        reason = "" if _is_grpc(answer) else "what answers there is not Ray"
    except (OSError, OverflowError) as error:
        reason = str(getattr(error, "strerror", None) or error)
    if reason:
        raise ConnectionError(
            f"a Ray cluster must be reachable at {address}, and is not ({reason}); start one there with "
            "`ray start --head`, correct --ray-address, or leave it out for a cluster of this machine alone"
        )


def _is_grpc(answer: bytes) -> bool:
    """Whether a server's first bytes begin a SETTINGS frame of HTTP/2, or are the alert of one that wants TLS."""
    return answer[3:4] == _SETTINGS or answer[:1] == _TLS_ALERT


def blocks(lines: Iterable[BatchLine], *, workers: int, least: int, most: int) -> Iterator[list[BatchLine]]:
    """Cut lines into blocks that fill a batch and still leave something for every worker.

    A block has between `least` and `most` lines, and in between a part of those before it, so that the last ones, with
    which the job ends on all workers, are no larger than a small share of the whole.
    """
    remaining, cut = iter(lines), 0
    while block := list(islice(remaining, min(max(least, cut // (2 * workers)), most))):
        cut += len(block)
        yield block


def shares(cluster: RayConfig, machines: Sequence[Mapping[str, float]]) -> tuple[int, int]:
    """GPUs of a worker, and the number of workers, on machines with these resources.

    ValueError for a worker that does not fit into the machine of a cluster of its own.
    """
    owned = [int(resources.get("GPU", 0)) for resources in machines]
    gpus = min(1, sum(owned)) if cluster.gpus is None else cluster.gpus
    if cluster.address is None:  # another cluster may grow
        _check("gpus", gpus, sum(owned))
        _check("cpus", cluster.cpus or 0, int(max(resources.get("CPU", 0) for resources in machines)))
    usual = sum(owned) if gpus else len(owned)
    return gpus, max(1, usual) if cluster.workers is None else cluster.workers


def _check(name: str, wanted: int, owned: int) -> None:
    if wanted > owned:
        raise ValueError(f"{name} of a worker must be at most {owned}, which this machine has, got {wanted}")
