"""Lines are cut into blocks for a cluster, and workers are counted, without Ray."""

import socket

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


def test_an_address_where_nobody_answers_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
            require_reachable(address)
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}", "127.0.0.1:99999"):
        with pytest.raises(ConnectionError, match=f"must be reachable at {address}, and is not .*; start one there"):
            require_reachable(address)
    for name in ("auto", "local", "somewhere"):  # what Ray itself looks for, or refuses
        require_reachable(name)
