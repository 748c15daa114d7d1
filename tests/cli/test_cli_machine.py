"""Owns the tests of what the commands know of the machine: doctor, the thread limit, the cache of programs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, Realm, process_environment

from realm_jax.compilation_cache import compilation_cache_folder
from realm_jax.host_cpu import HostCPU, host_cpu

affinity = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs CPU affinity")


def run_program(program: str, tmp_path: Path, **env: str) -> str:
    environment = {**process_environment(tmp_path), **env}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, cwd=ROOT
    )
    return done.stdout.strip()


def test_doctor_tells_devices_backends_versions_and_caches(realm_process: Realm, tmp_path: Path) -> None:
    facts = realm_process("doctor", "--json").json
    assert facts["devices"][0]["platform"] == "cpu"
    assert facts["backends"]["xla"] == "usable" and facts["backends"]["cpu"]
    assert facts["versions"]["jax"] and facts["versions"]["python"]
    assert facts["versions"]["jax-mps"] is None and "install 'realm-jax[metal]'" in facts["backends"]["mps"]
    assert facts["advice"] == []
    assert facts["cpu"]["usable_cpus"] >= 1
    assert facts["caches"]["folder"] == str(tmp_path / "cache")
    assert facts["caches"]["compiled_programs"].startswith(str(tmp_path / "cache"))


def test_doctor_says_when_programs_are_not_kept(realm_process: Realm) -> None:
    outcome = realm_process("doctor", env={"REALM_CACHE_DIR": "/proc/none"})
    assert outcome.code == 0
    assert "compiled_programs: none" in outcome.out and "compiled programs are not kept" in outcome.err


def test_doctor_says_what_to_install_instead_of_jax_metal(realm_process: Realm, tmp_path: Path) -> None:
    installed = tmp_path / "site" / "jax_metal-0.1.1.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: jax-metal\nVersion: 0.1.1\n")
    outcome = realm_process("doctor", "--json", env={"PYTHONPATH": f"{installed.parent}:{ROOT}"})
    (sentence,) = outcome.json["advice"]
    assert "made for jax 0.4" in sentence and "pip install 'realm-jax[metal]', which brings jax-mps" in sentence
    assert sentence in outcome.err


@affinity
def test_threads_limit_the_pool_that_xla_starts(tmp_path: Path) -> None:
    program = """
import os
from realm_jax.cli.threads import limit_threads
limit_threads(1)
import jax, jax.numpy as jnp
x = jnp.ones((512, 512))
(x @ x).block_until_ready()
tasks = [open(f"/proc/self/task/{t}/comm").read().strip() for t in os.listdir("/proc/self/task")]
print(tasks.count("tf_XLAEigen"), len(os.sched_getaffinity(0)))
"""
    assert run_program(program, tmp_path) == "1 1"


@affinity
def test_more_threads_than_cpus_are_refused(realm: Realm) -> None:
    realm("doctor", "--threads", "100000").assert_refused("--threads must be at most ")
    assert realm("doctor", "--threads", "0").code == 2


CACHE_PROGRAM = """
import json, jax
from realm_jax.compilation_cache import enable_compilation_cache
jax.jit(lambda x: x + 1)(1.0)
folder = enable_compilation_cache({folder!r})
jax.jit(lambda x: x * 3)(1.0)
print(json.dumps([str(folder) if folder else None, jax.config.jax_persistent_cache_min_compile_time_secs]))
"""


def test_compiled_programs_are_kept_even_when_enabled_late(tmp_path: Path) -> None:
    folder, seconds = json.loads(run_program(CACHE_PROGRAM.format(folder=str(tmp_path)), tmp_path))
    assert folder == str(compilation_cache_folder(tmp_path))
    assert seconds == 0
    assert any(Path(folder).iterdir())


def test_a_folder_that_the_user_chose_is_left_alone(tmp_path: Path) -> None:
    chosen = str(tmp_path / "chosen")
    program = CACHE_PROGRAM.format(folder=str(tmp_path))
    folder, seconds = json.loads(run_program(program, tmp_path, JAX_COMPILATION_CACHE_DIR=chosen))
    assert folder == chosen
    assert seconds != 0


def test_a_cache_that_the_user_switched_off_stays_off(tmp_path: Path) -> None:
    program = CACHE_PROGRAM.format(folder=str(tmp_path))
    assert json.loads(run_program(program, tmp_path, JAX_ENABLE_COMPILATION_CACHE="false"))[0] is None


def test_an_unwritable_cache_is_no_error(tmp_path: Path) -> None:
    assert json.loads(run_program(CACHE_PROGRAM.format(folder="/proc/none"), tmp_path))[0] is None


def test_machines_that_differ_have_folders_that_differ(tmp_path: Path) -> None:
    old = HostCPU(machine="x86_64", name="old", features=("avx2",))
    new = HostCPU(machine="x86_64", name="new", features=("avx2", "avx512f"))
    assert compilation_cache_folder(tmp_path, old) != compilation_cache_folder(tmp_path, new)


@pytest.mark.parametrize(
    ("text", "name", "features"),
    [
        ("model name\t: AMD EPYC\nflags\t\t: fma avx\n\nmodel name\t: other\n", "AMD EPYC", ("avx", "fma")),
        ("processor : 0\nFeatures : fp asimd\nCPU part : 0xd40\n", None, ("asimd", "fp")),
    ],
)
def test_cpuinfo_of_both_kinds(tmp_path: Path, text: str, name: str | None, features: tuple[str, ...]) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    cpu = host_cpu(tmp_path / "cpuinfo")
    assert cpu.features == features
    assert name is None or cpu.name == name
