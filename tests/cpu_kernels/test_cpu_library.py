"""Finding, checking and registering the shared library of CPU kernels."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import cpu_kernels
from cpu_kernels import native

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "cpu_kernels" / "src"
LIBRARY = "libcpu_kernels.dylib" if sys.platform == "darwin" else "libcpu_kernels.so"
ALL_NAMES = ("realm_ffi_api_major", *native._FUNCTIONS, *native._HANDLERS)
COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")


def run_python(code: str, *, first_on_path: Path | None = None, **variables: str) -> str:
    """Run code in a process of its own, with these environment variables too, and return what it prints."""
    environment = {**os.environ, **variables}
    if first_on_path is not None:
        environment["PYTHONPATH"] = os.pathsep.join([str(first_on_path), environment.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def installation(folder: Path) -> Path:
    """Make what an installation without a native library leaves behind, and return where the library would lie."""
    metadata = folder / "realm_jax-0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: realm-jax\nVersion: 0\n")
    (folder / "cpu_kernels").mkdir()
    return folder / "cpu_kernels" / LIBRARY


def reason(folder: Path) -> str:
    """Ask a process that sees the installation in folder first why the kernels are unavailable."""
    asked = "import cpu_kernels as c; assert not c.is_available(); print(c.why_unavailable())"
    return run_python(asked, first_on_path=folder)


def test_a_compiler_means_kernels() -> None:
    if COMPILER is None:
        assert "install a C++ compiler" in (cpu_kernels.why_unavailable() or "")
    else:
        assert cpu_kernels.why_unavailable() is None
        assert cpu_kernels.is_available()


def test_importing_loads_nothing() -> None:
    assert run_python("from cpu_kernels import native; print(native._load.cache_info().currsize)") == "0"


def test_a_missing_library_is_named_with_its_remedy(tmp_path: Path) -> None:
    installation(tmp_path)
    assert reason(tmp_path) == f"{LIBRARY} was not built; install a C++ compiler, then reinstall realm-jax"


def test_a_broken_library_is_a_reason(tmp_path: Path) -> None:
    installation(tmp_path).write_text("not a library")
    assert "cannot be loaded" in reason(tmp_path)


def compile_library(library: Path, names: tuple[str, ...], *, minor: int = 3, sources: str | None = None) -> None:
    """Compile a library for a minor version of the FFI API, built from these sources; other functions do nothing."""
    functions = {"realm_ffi_api_minor": minor} | dict.fromkeys(names, 0)
    digest = sources or native._sources_digest(SOURCES)
    source = library.with_suffix(".cc")
    source.write_text(
        f'extern "C" const char* realm_sources_digest() {{ return "{digest}"; }}\n'
        + "".join(f'extern "C" int {name}() {{ return {value}; }}\n' for name, value in functions.items())
    )
    subprocess.run([str(COMPILER), "-shared", "-fPIC", "-o", str(library), str(source)], check=True)


@pytest.mark.skipif(COMPILER is None, reason="compiles a library")
def test_a_library_for_a_newer_jaxlib_is_not_registered(tmp_path: Path) -> None:
    compile_library(installation(tmp_path), ALL_NAMES, minor=999)
    assert reason(tmp_path).startswith("the library needs FFI API 0.999 and the running jaxlib has ")


@pytest.mark.skipif(COMPILER is None, reason="compiles a library")
def test_a_library_without_a_function_is_of_other_sources(tmp_path: Path) -> None:
    compile_library(installation(tmp_path), ALL_NAMES[:-1])
    assert "was built from another version of the sources" in reason(tmp_path)


@pytest.mark.skipif(COMPILER is None, reason="compiles a library")
def test_a_library_of_other_sources_is_refused_and_shown(tmp_path: Path) -> None:
    library = installation(tmp_path)
    compile_library(library, ALL_NAMES, sources="0" * 64)
    code = """
from realm_jax.ops.backends import choose_implementation
try: choose_implementation("cpu")
except RuntimeError as error: print(error)
from realm_jax.cli import main
main(["doctor"])
"""
    refused, *doctor = run_python(code, first_on_path=tmp_path).splitlines()
    why = (
        f"{library} was built from another version of the sources than {native.__file__}; "
        "reinstall realm-jax (in a checkout: make .venv/.installed, or pip install .)"
    )
    assert refused == f"implementation 'cpu' cannot be used: {why}"
    assert f"  cpu: {why}" in doctor


def test_a_model_that_goes_without_the_kernels_says_so_once(tmp_path: Path) -> None:
    installation(tmp_path)
    model = ROOT / "tests" / "data" / "tiny" / "llama.gguf"
    code = f"""
import sys; sys.stderr = sys.stdout
from realm_jax import LLM
for options in ({{}}, {{"quiet": True}}, {{"implementation": "xla"}}):
    print(LLM({str(model)!r}, max_model_len=64, max_num_seqs=1, **options).implementation)
"""
    first, *others = run_python(code, first_on_path=tmp_path).splitlines()
    why = f"{LIBRARY} was not built; install a C++ compiler, then reinstall realm-jax"
    assert first == f"realm: computing through XLA, many times slower than native kernels: {why}"
    assert others == ["xla"] * 3


def test_any_change_of_the_sources_changes_their_digest(tmp_path: Path) -> None:
    shutil.copytree(SOURCES, tmp_path / "src")
    digests = [native._sources_digest(tmp_path / "src")]
    assert digests[0] == native._sources_digest(SOURCES)
    header = tmp_path / "src" / "settings.h"
    header.write_text(header.read_text() + "\n")
    digests.append(native._sources_digest(tmp_path / "src"))
    header.rename(header.with_name("options.h"))
    digests.append(native._sources_digest(tmp_path / "src"))
    (tmp_path / "src" / "notes.txt").write_text("no source")
    assert native._sources_digest(tmp_path / "src") == digests[-1]
    assert len({*digests}) == 3


def test_calling_an_unavailable_kernel_says_why(tmp_path: Path) -> None:
    installation(tmp_path)
    code = (
        "import cpu_kernels, jax.numpy as jnp\n"
        "tiles = jnp.zeros(cpu_kernels.tiled_shape('Q8_0', (16, 64)), jnp.uint8)\n"
        "try: cpu_kernels.quantized_matmul(jnp.ones((1, 64)), tiles, 'Q8_0', (16, 64))\n"
        "except RuntimeError as error: print(error)"
    )
    assert "must be available to call realm_quantized_matmul" in run_python(code, first_on_path=tmp_path)


@pytest.mark.parametrize(
    ("built", "running", "fits"),
    [
        ((0, 3), (0, 3), True),
        ((0, 3), (0, 5), True),
        ((0, 5), (0, 3), False),
        ((0, 3), (1, 3), False),
        ((1, 0), (0, 9), False),
        ((0, 3), None, False),
    ],
)
def test_a_library_runs_on_its_own_and_newer_minor_versions(
    built: tuple[int, int], running: tuple[int, int] | None, fits: bool
) -> None:
    assert (native._version_mismatch(built, running) is None) == fits


def test_the_running_version_comes_from_the_installed_headers(tmp_path: Path) -> None:
    running = native._running_ffi_version(Path(jax.ffi.include_dir()))
    assert running is not None and running >= (0, 3)  # 0.3 came with jaxlib 0.10
    assert native._running_ffi_version(tmp_path) is None
    header = tmp_path / "xla" / "ffi" / "api" / "c_api.h"
    header.parent.mkdir(parents=True)
    header.write_text("#define XLA_FFI_API_MAJOR 2\n")
    assert native._running_ffi_version(tmp_path) is None
    header.write_text("#define XLA_FFI_API_MAJOR 2\n#define XLA_FFI_API_MINOR 17\n")
    assert native._running_ffi_version(tmp_path) == (2, 17)


@pytest.mark.skipif(not cpu_kernels.is_available(), reason="needs the native library")
def test_many_threads_may_be_first() -> None:
    code = """
import concurrent.futures, threading
import jax.numpy as jnp
import cpu_kernels
barrier = threading.Barrier(8)
tiles = jnp.zeros(cpu_kernels.tiled_shape("Q8_0", (16, 64)), jnp.uint8)
def first(thread):
    barrier.wait()
    return float(cpu_kernels.quantized_matmul(jnp.full((1, 64), 1.0), tiles, "Q8_0", (16, 64)).sum())
with concurrent.futures.ThreadPoolExecutor(8) as pool:
    print(sum(pool.map(first, range(8))))
"""
    assert run_python(code) == "0.0"


@pytest.mark.skipif(not cpu_kernels.is_available(), reason="there are no kernels to choose among")
def test_the_environment_names_the_instruction_set() -> None:
    asked = "import cpu_kernels; print(cpu_kernels.best_instruction_set().name)"
    assert run_python(asked) == cpu_kernels.available_instruction_sets()[-1].name
    assert run_python(asked, REALM_INSTRUCTION_SET="Portable") == "PORTABLE"


@pytest.mark.skipif(not cpu_kernels.is_available(), reason="there are no kernels to choose among")
def test_an_instruction_set_that_is_not_here_is_refused() -> None:
    code = "import cpu_kernels\ntry: cpu_kernels.is_available()\nexcept ValueError as error: print(error)"
    here = ", ".join(s.name.lower() for s in cpu_kernels.available_instruction_sets())
    assert run_python(code, REALM_INSTRUCTION_SET="mmx") == (
        f"REALM_INSTRUCTION_SET is 'mmx', but kernels run here on: {here}; name one or unset it"
    )
