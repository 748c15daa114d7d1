"""Lines are cut into blocks for a cluster, and workers are counted, without Ray."""

import contextlib
import socket
import threading

import pytest

from realm_jax.jobs.lines import BatchLine
from realm_jax.jobs.ray_plan import RayConfig, blocks, require_reachable, shares

CPUS, GPUS = {"CPU": 8.0}, {"CPU": 8.0, "GPU": 4.0}


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 500, 5000])
def test_blocks_grow_and_stay_a_small_part_of_the_whole(count: int) -> None:
    lines = [BatchLine(number=number, custom_id=str(number)) for number in range(count)]
    cut = list(blocks(lines, workers=4, least=16, most=256))
    assert [line for block in cut for line in block] == lines
    sizes = [len(block) for block in cut]
    assert sizes[:-1] == sorted(sizes[:-1]) and max(sizes, default=0) <= 256
    assert all(size <= max(16, sum(sizes[:i]) // 8) for i, size in enumerate(sizes))
    assert max(sizes, default=0) == 256 or count < 5000


@pytest.mark.parametrize(
    ("options", "machines", "gpus_and_workers"),
    [
        ({}, [CPUS] * 3, (0, 3)),
        ({}, [CPUS, GPUS], (1, 4)),
        ({"gpus": 0}, [GPUS], (0, 1)),
        ({"workers": 5}, [GPUS], (1, 5)),
        ({"gpus": 1, "address": "host:1"}, [CPUS], (1, 1)),
        ({"cpus": 8}, [CPUS], (0, 1)),
    ],
)
def test_there_is_a_worker_for_every_gpu_or_machine(
    options: dict[str, int], machines: list[dict[str, float]], gpus_and_workers: tuple[int, int]
) -> None:
    assert shares(RayConfig(**options), machines) == gpus_and_workers


def test_workers_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        RayConfig(workers=0)
    with pytest.raises(ValueError, match="gpus of a worker must be 0 or 1, got 2"):
        RayConfig(gpus=2)
    with pytest.raises(ValueError, match="gpus of a worker must be at most 0, which this machine has, got 1"):
        shares(RayConfig(gpus=1), [CPUS])
    with pytest.raises(ValueError, match="cpus of a worker must be at most 8, which this machine has, got 9"):
        shares(RayConfig(cpus=9), [CPUS])


def answering(answer: bytes) -> tuple[socket.socket, str]:
    """A server that says this to everybody once asked, and its address."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):  # until it is closed
            while True:
                connection, _ = server.accept()
                with connection:
                    connection.recv(100)
                    connection.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    return server, f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("answer", [b"\0\0\6\4\0\0\0\0\0\0\5\0\0\x40\0", b"\x15\3\3\0\2\2\x28"])
def test_a_server_of_grpc_is_taken_for_a_cluster(answer: bytes) -> None:
    server, address = answering(answer)
    with server:
        require_reachable(address)
        require_reachable(f"ray://{address}")


def test_an_address_where_no_cluster_answers_is_refused() -> None:
    page, address = answering(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    silent = socket.create_server(("127.0.0.1", 0))
    deaf = f"127.0.0.1:{silent.getsockname()[1]}"
    with page, silent:
        refused = {
            address: "what answers there is not Ray",
            deaf: "timed out",
            "127.0.0.1:1": "",
            "127.0.0.1:99999": "",
        }
        for where, reason in refused.items():
            with pytest.raises(
                ConnectionError, match=rf"must be reachable at {where}, and is not \(.*{reason}.*; start"
            ):
                require_reachable(where, seconds=0.2)
    for name in ("auto", "local", "somewhere"):  # what Ray itself looks for, or refuses
        require_reachable(name)
