"""64-bit integers in pairs of uint32 against Python's integers."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from realm_jax.sampling import wide
from realm_jax.sampling.wide import Wide

words = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 2**16, 2**32 - 1, 2**32, 2**48 - 1, 2**64 - 1]))
pairs = st.lists(st.tuples(words, words), min_size=8, max_size=8)


def to_wide(values: list[int]) -> Wide:
    return Wide(
        jnp.asarray(np.array([v >> 32 for v in values], np.uint32)),
        jnp.asarray(np.array([v % 2**32 for v in values], np.uint32)),
    )


def to_ints(w: Wide) -> list[int]:
    return [(int(high) << 32) + int(low) for high, low in zip(np.ravel(w.high), np.ravel(w.low), strict=True)]


@jax.jit
def combinations(a: Wide, b: Wide) -> dict[str, Wide | jax.Array]:
    return {
        "add": wide.add(a, b),
        "subtract": wide.subtract(a, b),
        "less": wide.less(a, b),
        "equal": wide.equal(a, b),
        "minimum": wide.minimum(a, b),
        "total": wide.total(a),
        "cumulative": wide.cumulative(a),
        "product": wide.product(a.low, b.low),
        "scale": wide.scale(a, b.low),
        "from_parts": wide.from_parts(a.low, b.low, 18),
    }


@given(pairs)
def test_arithmetic_is_that_of_integers(values: list[tuple[int, int]]) -> None:
    a, b = [x for x, _ in values], [y for _, y in values]
    low = [y % 2**32 for y in b]
    got = combinations(to_wide(a), to_wide(b))
    modulo = 2**64
    assert to_ints(got["add"]) == [(x + y) % modulo for x, y in values]
    assert to_ints(got["subtract"]) == [(x - y) % modulo for x, y in values]
    assert list(got["less"]) == [x < y for x, y in values]
    assert list(got["equal"]) == [x == y for x, y in values]
    assert to_ints(got["minimum"]) == [min(x, y) for x, y in values]
    assert to_ints(got["total"]) == [sum(a) % modulo]
    assert to_ints(got["cumulative"]) == [sum(a[: i + 1]) % modulo for i in range(len(a))]
    assert to_ints(got["product"]) == [(x % 2**32) * y for x, y in zip(a, low, strict=True)]
    assert to_ints(got["scale"]) == [x * y >> 32 for x, y in zip(a, low, strict=True)]
    assert to_ints(got["from_parts"]) == [((x % 2**32) << 18) + y for x, y in zip(a, low, strict=True)]


def test_sums_run_along_the_last_axis() -> None:
    values = np.random.default_rng(0).integers(0, 2**63, (3, 5), np.uint64)
    w = Wide(jnp.asarray((values >> 32).astype(np.uint32)), jnp.asarray(values.astype(np.uint32)))
    assert to_ints(wide.total(w)) == list(np.sum(values, -1, dtype=np.uint64))
    assert to_ints(wide.cumulative(w)) == list(np.ravel(np.cumsum(values, -1, dtype=np.uint64)))
