"""The packed codebooks are the gguf package's grids, decoded on first use, without the gguf package."""

import base64
import subprocess
import sys

import gguf
import numpy as np
import pytest

from realm_jax.quant import codebooks
from realm_jax.quant.codebooks import Codebook

CODEBOOKS = {
    "IQ2_XXS": codebooks.IQ2_XXS,
    "IQ2_XS": codebooks.IQ2_XS,
    "IQ2_S": codebooks.IQ2_S,
    "IQ3_XXS": codebooks.IQ3_XXS,
    "IQ3_S": codebooks.IQ3_S,
    "IQ1_S": codebooks.IQ1,
    "IQ1_M": codebooks.IQ1,
}


@pytest.mark.parametrize("name", CODEBOOKS)
def test_points_are_the_packages_grid(name: str) -> None:
    quant = getattr(gguf.quants, name)
    quant.init_grid()
    points = codebooks.points(CODEBOOKS[name])
    assert points.dtype == np.int8
    np.testing.assert_array_equal(points, quant.grid[0, 0])


def test_points_are_decoded_once_and_cannot_be_changed() -> None:
    points = codebooks.points(codebooks.IQ3_S)
    assert codebooks.points(codebooks.IQ3_S) is points
    with pytest.raises(ValueError, match="read-only"):
        points[0, 0] = 0


def test_order_of_points() -> None:
    # The lattice {0, 1, 2}^2 without its points 1 and 3, which are (1, 0) and (0, 1).
    toy = Codebook(levels=(0, 1, 2), digits=2, members=_base_85(0b1_1111_0101))
    np.testing.assert_array_equal(codebooks.points(toy), [[0, 0], [2, 0], [1, 1], [2, 1], [0, 2], [1, 2], [2, 2]])


def test_importing_decodes_nothing_and_leaves_the_gguf_package_out() -> None:
    program = (
        "import sys, realm_jax.quant as q; from realm_jax.quant import codebooks;"
        "print('gguf' in sys.modules, codebooks.points.cache_info().currsize)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "0"]


def _base_85(bitmap: int) -> str:
    return base64.b85encode(bitmap.to_bytes(4, "little")).decode()
