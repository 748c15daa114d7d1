"""The formats that have tiles: how src/tiles.h lays them out, and which weights they stand for.

Every weight is exactly the file's. Bits a weight, and in the file:

======== ========== ===== ====== ======================================================================================
format   tile        bits   file a weight is
======== ========== ===== ====== ======================================================================================
Q1_0     one        1.125  1.125 d (2 q - 1)
Q4_0     nibble       4.5    4.5 d (q - 8)
Q4_1     nibble_min     5      5 d q + m
Q5_0     five         5.5    5.5 d (q - 16)
Q5_1     five_min       6      6 d q + m
Q8_0     byte         8.5    8.5 d q
Q8_1     byte         8.5      9 d q
TQ1_0    ternary    2.125  1.688 d (q - 1)
TQ2_0    ternary    2.125  2.063 d (q - 1)
Q2_K     q2_k       2.625  2.625 d s q - dmin m, with s and m for 16 columns
Q3_K     q3_k       3.625  3.438 d s (q - 4), with s for 16 columns
Q4_K     q4_k       4.625    4.5 d s q - dmin m
Q5_K     q5_k       5.625    5.5 d s q - dmin m
Q6_K     q6_k       6.625  6.563 d s (q - 32), with s for 16 columns
Q8_K     q8_k       8.125  9.125 d q
IQ4_NL   iq4_nl       4.5    4.5 d v(q), v a nonlinear grid
IQ4_XS   iq4_xs     4.375   4.25 d s v(q)
MXFP4    mxfp4       4.25   4.25 2^n v(q), v twice the e2m1 floats; a scale that is subnormal in float32 counts as zero
NVFP4    nvfp4        4.5    4.5 d v(q), with d half an e4m3 float, for 16 columns
IQ1_S    iq1        4.625  1.563 d s v(q), v eight times a coordinate of the codebook's points, shifted
IQ1_M    iq1        4.625   1.75 the same, with s for 16 columns
IQ2_XXS  iq2        4.625  2.063 d s v(q), v a coordinate of the codebook's points, with its sign
IQ2_XS   iq2        4.625  2.313 the same, with s for 16 columns
IQ2_S    iq2        4.625  2.563 the same, with s for 16 columns
IQ3_XXS  iq3_xxs    4.375  3.063 as IQ2_XXS
IQ3_S    iq3_s      4.375  3.438 as IQ2_XXS
F32      float32       32     32 itself, as in the next two: activations are not rounded for them
F16      float16       16     16
BF16     bfloat16      16     16
======== ========== ===== ====== ======================================================================================
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from types import MappingProxyType

__all__ = ["CODEBOOKS", "FORMATS", "GROUP", "TILE_ROWS", "ScaleCode", "TileKind", "UnitScale"]

TILE_ROWS = 16
GROUP = 32


class ScaleCode(Enum):
    """How the scales and minima of groups are stored: see src/tiles.h."""

    NONE = auto()
    HALF = auto()
    INTEGER = auto()
    PAIR = auto()
    POWER_OF_TWO = auto()
    E4M3 = auto()


class UnitScale(Enum):
    """How a unit's own scale is stored: see src/tiles.h."""

    NONE = auto()
    HALF = auto()
    SINGLE = auto()
    WITH_MIN = auto()

    @property
    def sets(self) -> int:
        """Sets of 16 numbers: scales, and factors of minima."""
        return {UnitScale.NONE: 0, UnitScale.WITH_MIN: 2}.get(self, 1)

    @property
    def width(self) -> int:
        """Bytes of a number."""
        return 4 if self == UnitScale.SINGLE else 2


@dataclass(frozen=True, kw_only=True)
class TileKind:
    """How the tiles of a format are laid out: `index` as in src/tiles.h, the rest per unit or group of 32 columns.

    A code stands for `code - offset`, or for its entry of `table`; of a `plain` kind it is the float of that type.
    """

    index: int
    groups: int
    low_bits: int
    high_bits: int = 0
    scales: int = 1
    scale_code: ScaleCode = ScaleCode.HALF
    unit_scale: UnitScale = UnitScale.NONE
    has_min: bool = False
    offset: int = 0
    table: tuple[int, ...] | None = None
    plain: str | None = None

    @property
    def sets(self) -> int:
        """Sets of 16 scales or minima a group."""
        return self.scales * (2 if self.has_min and self.scale_code != ScaleCode.PAIR else 1)

    @property
    def scale_width(self) -> int:
        """Bytes of a group's scale."""
        return 2 if self.scale_code == ScaleCode.HALF else 1

    @property
    def unit_bytes(self) -> int:
        """Bytes of a unit: codes, planes of high bits, scales and minima of its groups, and its own scale."""
        group = 64 * (self.low_bits + self.high_bits) + TILE_ROWS * self.scale_width * self.sets
        return self.groups * group + TILE_ROWS * self.unit_scale.width * self.unit_scale.sets


def _super_block(index: int, low_bits: int, high_bits: int = 0, **rest: object) -> TileKind:
    settings = {"scale_code": ScaleCode.INTEGER, "unit_scale": UnitScale.SINGLE, **rest}
    return TileKind(index=index, groups=8, low_bits=low_bits, high_bits=high_bits, **settings)  # pyright: ignore[reportArgumentType]


def _signed(*magnitudes: int) -> tuple[int, ...]:
    """Magnitudes by the lower three bits of a code, their sign by the fourth."""
    half = magnitudes + (0,) * (8 - len(magnitudes))
    return half + tuple(-value for value in half)


def _plain(index: int, dtype: str, bits: int) -> TileKind:
    return TileKind(index=index, groups=1, low_bits=bits, scales=0, scale_code=ScaleCode.NONE, plain=dtype)


_NONLINEAR = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_E2M1 = _signed(0, 1, 2, 3, 4, 6, 8, 12)

_BYTE = TileKind(index=4, groups=2, low_bits=8, offset=128)
_TERNARY = _super_block(6, 2, scales=0, scale_code=ScaleCode.NONE, offset=1)
_WITH_MIN = {"unit_scale": UnitScale.WITH_MIN, "has_min": True}
_IQ1 = _super_block(17, 4, scales=2, table=(-9, -7, -1, 1, 7, 9))
_IQ2 = _super_block(18, 4, scales=2, table=_signed(8, 25, 43))

# In the order of the packers in src/pack.cc.
FORMATS: Mapping[str, TileKind] = MappingProxyType(
    {
        "Q1_0": TileKind(
            index=5,
            groups=4,
            low_bits=1,
            scales=0,
            scale_code=ScaleCode.NONE,
            unit_scale=UnitScale.HALF,
            table=(-1, 1),
        ),
        "Q4_0": TileKind(index=0, groups=2, low_bits=4, offset=8),
        "Q4_1": TileKind(index=1, groups=1, low_bits=4, has_min=True),
        "Q5_0": TileKind(index=2, groups=2, low_bits=4, high_bits=1, offset=16),
        "Q5_1": TileKind(index=3, groups=1, low_bits=4, high_bits=1, has_min=True),
        "Q8_0": _BYTE,
        "Q8_1": _BYTE,
        "TQ1_0": _TERNARY,
        "TQ2_0": _TERNARY,
        "Q2_K": _super_block(7, 2, scales=2, scale_code=ScaleCode.PAIR, **_WITH_MIN),
        "Q3_K": _super_block(8, 2, 1, scales=2, offset=4),
        "Q4_K": _super_block(9, 4, **_WITH_MIN),
        "Q5_K": _super_block(10, 4, 1, **_WITH_MIN),
        "Q6_K": _super_block(11, 4, 2, scales=2, offset=32),
        "Q8_K": _super_block(12, 8, scales=0, scale_code=ScaleCode.NONE, offset=128),
        "IQ4_NL": TileKind(index=13, groups=2, low_bits=4, table=_NONLINEAR),
        "IQ4_XS": _super_block(14, 4, table=_NONLINEAR),
        "MXFP4": TileKind(index=15, groups=4, low_bits=4, scale_code=ScaleCode.POWER_OF_TWO, table=_E2M1),
        "NVFP4": TileKind(index=16, groups=2, low_bits=4, scales=2, scale_code=ScaleCode.E4M3, table=_E2M1),
        "IQ1_S": _IQ1,
        "IQ1_M": _IQ1,
        "IQ2_XXS": _IQ2,
        "IQ2_XS": _IQ2,
        "IQ2_S": _IQ2,
        "IQ3_XXS": _super_block(19, 4, table=_signed(4, 12, 20, 28, 36, 44, 52, 62)),
        "IQ3_S": _super_block(20, 4, table=_signed(1, 3, 5, 7, 9, 11, 13, 15)),
        "F32": _plain(21, "float32", 32),
        "F16": _plain(22, "float16", 16),
        "BF16": _plain(23, "bfloat16", 16),
    }
)
"""The formats that can be packed, by ggml's names."""

CODEBOOKS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "IQ1_S": (2048, 8),
        "IQ1_M": (2048, 8),
        "IQ2_XXS": (256, 8),
        "IQ2_XS": (512, 8),
        "IQ2_S": (1024, 8),
        "IQ3_XXS": (256, 4),
        "IQ3_S": (512, 4),
    }
)
"""Points and coordinates of the codebook that packing a format needs."""
