"""The native paged_attention against dense attention in float64, and against itself, bit for bit."""

import concurrent.futures
import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import Case, Layer, run

import cpu_kernels
from cpu_kernels import CACHE_KINDS, AttentionOptions

pytestmark = pytest.mark.skipif(not cpu_kernels.is_available(), reason="needs the native library")

INSTRUCTION_SETS = cpu_kernels.available_instruction_sets() if cpu_kernels.is_available() else ()

EVERYTHING = (("window", 70), ("softcap", 5.0), ("rope_style", "half"), ("norm", "head"))
RAGGED = ((0, 1), (300, 1), (37, 11), (250, 9), (0, 30))

CASES = {
    "one token": Case(sequences=((0, 1),)),
    "odd groups": Case(heads=21, kv_heads=3, head_dim=20, sequences=((3, 9), (280, 2))),
    "one kv head": Case(heads=5, kv_heads=1, head_dim=256, block_size=64, sequences=((600, 3),)),
    "a key for each query": Case(heads=3, kv_heads=3, head_dim=8, block_size=8, sequences=RAGGED),
    "window": Case(options=(("window", 40),), sequences=RAGGED),
    "a window of one": Case(options=(("window", 1),), sequences=((0, 20), (255, 3))),
    "a window of many chunks": Case(options=(("window", 300),), block_size=32, sequences=((700, 20),)),
    "softcap": Case(options=(("softcap", 2.0),), sequences=RAGGED),
    "sinks": Case(sinks=True, sequences=RAGGED),
    "interleaved": Case(options=(("rope_style", "interleaved"),), pairs=32, sequences=RAGGED),
    "half": Case(options=(("rope_style", "half"),), pairs=40, head_dim=80, sequences=RAGGED),
    "partial interleaved": Case(options=(("rope_style", "interleaved"),), pairs=6, head_dim=96, sequences=((5, 9),)),
    "partial half": Case(options=(("rope_style", "half"),), pairs=7, head_dim=20, sequences=((5, 9),)),
    "norm of heads": Case(options=(("norm", "head"),), head_dim=96, sequences=RAGGED),
    "norm of all": Case(options=(("norm", "full"),), head_dim=128, sequences=RAGGED),
    "odd blocks": Case(block_size=20, sequences=RAGGED, options=(("window", 90),)),
    "wide blocks": Case(block_size=600, sequences=((0, 20), (650, 12))),
    "everything": Case(options=EVERYTHING, pairs=32, heads=6, sinks=True, block_size=24, sequences=RAGGED, padding=3),
}


def assert_right(layer: Layer, cache: jax.Array, out: jax.Array) -> None:
    at = 0
    for sequence, first, end in layer.new_spans():
        exact, bound = layer.expected(cache, sequence, first)
        got = np.asarray(out[at : at + end - first], np.float64)
        assert np.isfinite(got).all()
        np.testing.assert_array_less(np.abs(got - exact), bound + 1e-30)
        at += end - first
    np.testing.assert_array_equal(out[at:], 0)


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_those_of_dense_attention(name: str) -> None:
    layer = Layer(CASES[name])
    out, cache = layer.call(layer.after_history(), layer.new_spans(), CASES[name].padding)
    assert_right(layer, cache, out)


@pytest.mark.parametrize("head_dim", [8, 20, 64, 80, 96, 128, 256])
@pytest.mark.parametrize("kind", CACHE_KINDS)
def test_every_kind_of_cache_is_read_exactly(kind: str, head_dim: int) -> None:
    case = Case(kind=kind, head_dim=head_dim, sequences=((270, 4), (0, 19)))
    layer = Layer(case)
    out, cache = layer.call(layer.after_history(), layer.new_spans())
    assert_right(layer, cache, out)


@pytest.mark.parametrize("kind", CACHE_KINDS)
def test_keys_and_values_are_written_to_their_places_and_nowhere_else(kind: str) -> None:
    case = Case(kind=kind, head_dim=80, block_size=24, options=EVERYTHING, pairs=20, sequences=((3, 50), (0, 9)))
    layer = Layer(case)
    empty = np.array(layer.empty_cache()).view(np.uint8)
    cache = layer.call(layer.after_history(), layer.new_spans(), padding=5)[1]
    for sequence in range(2):
        exact = np.stack([layer.exact_k(sequence), layer.v[sequence].astype(np.float64)])
        # Half a unit in the last place of each kind, and of float32 for the norm and rotation before it.
        relative = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8, "q8_0": 0.0}[kind]
        bound = relative * np.abs(exact) + 2.0**-20 * np.abs(exact).max()
        if kind == "q8_0":
            # Half of a scale, max / 127 of 32 channels, itself rounded by 2^-11.
            groups = [np.abs(exact[..., i : i + 32]).max(axis=-1, keepdims=True) for i in range(0, 80, 32)]
            widths = (32, 32, 16)
            largest = np.concatenate([np.repeat(g, n, axis=-1) for g, n in zip(groups, widths, strict=True)], axis=-1)
            bound = bound + largest / 254 * (1 + 2.0**-10)
        np.testing.assert_array_less(np.abs(np.stack(layer.cached(cache, sequence)) - exact), bound)
    unpacked = np.asarray(cpu_kernels.unpack_cache(cache, kind, case.shape))
    written = np.isfinite(unpacked).reshape(-1, 2 * case.kv_heads * case.head_dim)
    assert (written.all(axis=1) == written.any(axis=1)).all()
    assert written.all(axis=1).sum() == sum(layer.lengths)
    touched = (np.array(cache).view(np.uint8) != empty).reshape(layer.blocks, -1).any(axis=1)
    used = [layer.table[s, : -(-n // case.block_size)] for s, n in enumerate(layer.lengths)]
    np.testing.assert_array_equal(np.flatnonzero(touched), np.sort(np.concatenate(used)))


@pytest.mark.parametrize("kind", CACHE_KINDS)
def test_a_prompt_gives_the_same_bits_in_one_call_in_chunks_and_token_by_token(kind: str) -> None:
    window = (("window", 150), *EVERYTHING[1:])
    case = Case(kind=kind, heads=6, options=window, pairs=32, sinks=True, sequences=((0, 290),))
    layer = Layer(case)
    whole, written = layer.call(layer.empty_cache(), [(0, 0, 290)])
    for size in (7, 64, 1):
        cache, outs = layer.empty_cache(), []
        for first in range(0, 290, size):
            out, cache = layer.call(cache, [(0, first, min(290, first + size))])
            outs.append(out)
        np.testing.assert_array_equal(np.concatenate(outs), whole)
        np.testing.assert_array_equal(np.array(cache).view(np.uint8), np.array(written).view(np.uint8))


@pytest.mark.parametrize("kind", CACHE_KINDS)
def test_results_do_not_depend_on_company_threads_or_instruction_set(kind: str) -> None:
    case = Case(kind=kind, heads=6, head_dim=80, options=EVERYTHING[1:], pairs=20, sinks=True, sequences=RAGGED)
    layer = Layer(case)
    spans = layer.new_spans()
    whole, written = layer.call(layer.after_history(), spans)
    alone = [layer.call(layer.after_history(), [span])[0] for span in spans]
    np.testing.assert_array_equal(np.concatenate(alone), whole)
    np.testing.assert_array_equal(layer.call(layer.after_history(), spans, padding=9)[0][: len(whole)], whole)
    for instruction_set in INSTRUCTION_SETS:
        for threads in (1, 2, 5):
            how = {"instruction_set": instruction_set, "threads": threads}
            out, cache = layer.call(layer.after_history(), spans, **how)
            np.testing.assert_array_equal(out, whole)
            np.testing.assert_array_equal(np.array(cache).view(np.uint8), np.array(written).view(np.uint8))


def test_long_contexts_need_several_slabs_and_give_the_same_bits() -> None:
    case = Case(heads=32, kv_heads=2, head_dim=128, block_size=64, kind="float16", sequences=((8000, 200),))
    layer = Layer(case)
    # Where only the cache is wanted, tokens that see themselves alone write the same, in a thousandth of the time.
    writer = Layer(dataclasses.replace(case, options=(("window", 1),)))
    before = writer.after_history()
    whole, _ = layer.call(jnp.copy(before), layer.new_spans())
    for token in (8000, 8111, 8199):
        written = writer.call(jnp.copy(before), [(0, 8000, token)])[1] if token > 8000 else jnp.copy(before)
        np.testing.assert_array_equal(layer.call(written, [(0, token, token + 1)])[0][0], whole[token - 8000])


def test_a_donated_cache_is_updated_in_place() -> None:
    layer = Layer(Case())
    cache = layer.empty_cache()
    address = cache.unsafe_buffer_pointer()
    _, written = layer.call(cache, layer.new_spans())
    assert written.unsafe_buffer_pointer() == address
    assert cache.is_deleted()


@pytest.mark.parametrize("where", ["q", "k", "v"])
def test_nan_reaches_what_sees_it_and_nothing_else(where: str) -> None:
    layer = Layer(Case(heads=4, kv_heads=2, sequences=((0, 40),)))
    getattr(layer, where)[0][20, 1, 3] = np.nan
    for instruction_set in INSTRUCTION_SETS:
        out = np.isnan(layer.call(layer.empty_cache(), [(0, 0, 40)], instruction_set=instruction_set)[0])
        expected = np.zeros_like(out)
        if where == "q":
            expected[20, 1] = True
        elif where == "k":
            expected[20:, 2:] = True
        else:
            expected[20:, 2:, 3] = True
        np.testing.assert_array_equal(out, expected)


def test_derivatives_are_those_of_dense_attention() -> None:
    case = Case(kind="float32", options=EVERYTHING, pairs=20, sinks=True, sequences=((11, 6), (0, 3)), padding=2)
    layer = Layer(case)
    cache = layer.after_history()
    ((q, k, v), batch), rope = layer.batch(layer.new_spans(), case.padding)
    seed = jnp.asarray(np.random.default_rng(1).normal(size=q.shape), jnp.float32)
    kept = np.asarray(cpu_kernels.unpack_cache(cache, "float32", case.shape))
    kept = np.nan_to_num(kept[layer.table].reshape(2, -1, 2, case.kv_heads, case.head_dim))

    def dense(qkv: tuple[jax.Array, ...]) -> jax.Array:
        """Sequence by sequence, in jnp alone."""
        outs = []
        for sequence, (first, end) in enumerate([(0, 6), (6, 9)]):
            before = case.sequences[sequence][0]
            cos, sin = (x[first:end, None] for x in rope)
            q, k = (prepared(x[first:end], w, cos, sin) for x, w in zip(qkv[:2], layer.norms, strict=True))
            k = jnp.concatenate([kept[sequence, :before, 0], k])
            v = jnp.concatenate([kept[sequence, :before, 1], qkv[2][first:end]])
            k, v = (jnp.repeat(x, 2, axis=1) for x in (k, v))
            scores = 5.0 * jnp.tanh(jnp.einsum("thd,shd->ths", q, k, precision="highest") / 8 / 5.0)
            seen = jnp.arange(len(k))[None] <= before + jnp.arange(end - first)[:, None]
            scores = jnp.where(seen[:, None], scores, -1e30)
            sinks = jnp.broadcast_to(layer.sinks[None, :, None], (*scores.shape[:2], 1))
            weights = jax.nn.softmax(jnp.concatenate([scores, sinks], axis=-1), axis=-1)[..., :-1]
            outs.append(jnp.einsum("ths,shd->thd", weights, v, precision="highest"))
        return jnp.concatenate([*outs, jnp.zeros((case.padding, *outs[0].shape[1:]))])

    def prepared(x: jax.Array, weight: np.ndarray, cos: jax.Array, sin: jax.Array) -> jax.Array:
        x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6) * weight[None, None]
        a, b, rest = x[..., :20], x[..., 20:40], x[..., 40:]
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)

    def native(qkv: tuple[jax.Array, ...]) -> jax.Array:
        batch_ = tuple(jnp.asarray(x) for x in batch)
        options = {"rope": rope, "norms": tuple(map(jnp.asarray, layer.norms)), "sinks": jnp.asarray(layer.sinks)}
        return cpu_kernels.paged_attention(qkv, cache, batch_, case.spec, **options)[0]

    # Sums of a few hundred float32 products of numbers about 1, in two orders.
    close = partial(np.testing.assert_allclose, rtol=0, atol=2e-5)
    pull = lambda f: jax.jit(lambda qkv: jax.vjp(f, qkv)[1](seed))((q, k, v))  # noqa: E731
    jax.tree.map(close, pull(native), pull(dense))
    tangents = tuple(jnp.cos(jnp.arange(x.size)).reshape(x.shape) for x in (q, k, v))
    push = lambda f: jax.jit(lambda *qkv: jax.jvp(f, (qkv,), (tangents,))[1])(q, k, v)  # noqa: E731
    close(push(native), push(dense))


@pytest.mark.parametrize("kind", CACHE_KINDS)
def test_the_tangent_of_the_cache_is_zero(kind: str) -> None:
    layer = Layer(Case(kind=kind))
    ((q, k, v), batch), _ = layer.batch(layer.new_spans())
    batch = tuple(jnp.asarray(x) for x in batch)

    def write(q: jax.Array) -> tuple[jax.Array, jax.Array]:
        return cpu_kernels.paged_attention((q, k, v), layer.empty_cache(), batch, layer.case.spec)

    tangent, of_cache = jax.jit(lambda q: jax.jvp(write, (q,), (q,))[1])(q)
    assert np.abs(tangent).max() > 0
    assert of_cache.dtype == (jax.dtypes.float0 if kind == "q8_0" else layer.empty_cache().dtype)
    assert not np.asarray(of_cache).astype(bool).any()


def test_vmap_runs_layers_one_after_another() -> None:
    layers = [Layer(Case(), seed) for seed in range(3)]
    batches = [layer.batch(layer.new_spans())[0] for layer in layers]
    stacked = jax.tree.map(lambda *x: jnp.stack([jnp.asarray(y) for y in x]), *batches)
    caches = jnp.stack([layer.empty_cache() for layer in layers])
    attend = lambda qkv, batch, cache: cpu_kernels.paged_attention(qkv, cache, batch, Case().spec)  # noqa: E731
    outs, _ = jax.vmap(attend)(*stacked, caches)
    for layer, out in zip(layers, outs, strict=True):
        np.testing.assert_array_equal(out, layer.call(layer.empty_cache(), layer.new_spans())[0])


def test_a_batch_of_padding_alone_writes_nothing() -> None:
    layer = Layer(Case())
    for padding in (0, 3):
        cache = layer.empty_cache()
        before = np.array(cache).view(np.uint8)
        qkv = tuple(jnp.full((padding, *x[0].shape[1:]), np.nan) for x in (layer.q, layer.k, layer.v))
        batch = (jnp.zeros(padding, jnp.int32), jnp.zeros(2, jnp.int32), jnp.ones(1, jnp.int32), layer.table[:1])
        out, cache = run(layer.case.spec, qkv, batch, cache, None, None, None)
        np.testing.assert_array_equal(out, np.zeros((padding, 4, 64)))
        np.testing.assert_array_equal(np.array(cache).view(np.uint8), before)


def test_bfloat16_queries_give_bfloat16() -> None:
    layer = Layer(Case(kind="bfloat16"))
    (qkv, batch), _ = layer.batch(layer.new_spans())
    narrow = tuple(x.astype(jnp.bfloat16) for x in qkv)
    wide = tuple(x.astype(jnp.float32) for x in narrow)
    out, _ = run(layer.case.spec, narrow, batch, layer.empty_cache(), None, None, None)
    expected, _ = run(layer.case.spec, wide, batch, layer.empty_cache(), None, None, None)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out, expected.astype(jnp.bfloat16))


@pytest.mark.parametrize(
    ("index", "value", "rule"),
    [
        (0, [0, 1, 2, 3, 32], "positions must lie inside the block table"),
        (0, [0, 1, 2, 3, -1], "positions must lie inside the block table"),
        (1, [0, 6], "query_start must ascend"),
        (1, [1, 5], "query_start must begin with 0"),
        (1, [0, -1], "query_start must ascend"),
        (3, [[4, 0]], "block_table must name blocks of the cache"),
        (3, [[-1, 0]], "block_table must name blocks of the cache"),
    ],
)
def test_indices_outside_are_refused(index: int, value: list, rule: str) -> None:
    layer = Layer(Case())
    (qkv, batch), _ = layer.batch(layer.new_spans())
    broken = tuple(jnp.asarray(value if i == index else x, jnp.int32) for i, x in enumerate(batch))
    with pytest.raises(jax.errors.JaxRuntimeError, match=rule):
        jax.block_until_ready(run(layer.case.spec, qkv, broken, layer.empty_cache(), None, None, None))


def test_errors_name_the_rule() -> None:
    layer = Layer(Case())
    (qkv, batch), _ = layer.batch(layer.new_spans())
    batch, cache = tuple(jnp.asarray(x) for x in batch), layer.empty_cache()
    attend = partial(cpu_kernels.paged_attention, qkv, cache, batch)
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        AttentionOptions(block_size=16, scale=1.0, window=0)
    with pytest.raises(ValueError, match="softcap must be positive, got 0"):
        AttentionOptions(block_size=16, scale=1.0, softcap=0.0)
    with pytest.raises(ValueError, match="rope must be given exactly where the options ask for it"):
        attend(AttentionOptions(block_size=16, scale=1.0, rope_style="half"))
    with pytest.raises(ValueError, match="must have shape"):
        attend(AttentionOptions(block_size=32, scale=1.0))
    with pytest.raises(ValueError, match="kind must be one of"):
        cpu_kernels.cache_dtype("q4_0")


def test_rope_tables_are_the_rounded_cosines_of_any_number_of_positions() -> None:
    positions = np.array([0, 1, 7, 4095, 131071], np.int32)
    frequencies = (10000.0 ** -np.linspace(0, 1, 33)).astype(np.float32)
    table = cpu_kernels.rope_table(jnp.asarray(positions), jnp.asarray(frequencies), 1.25)
    angles = positions[:, None].astype(np.float64) * frequencies.astype(np.float64)
    for got, exact in zip(table, (1.25 * np.cos(angles), 1.25 * np.sin(angles)), strict=True):
        # Rounded once to float32, from doubles within 2^-50.
        np.testing.assert_array_less(np.abs(got - exact), 2.0**-24 * np.abs(exact) + 2.0**-49)
    for i in range(len(positions)):
        alone = cpu_kernels.rope_table(jnp.asarray(positions[i : i + 1]), jnp.asarray(frequencies), 1.25)
        jax.tree.map(lambda one, all_, i=i: np.testing.assert_array_equal(one[0], all_[i]), alone, table)


def test_calls_from_many_threads_neither_mix_nor_wait_for_each_other() -> None:
    layer = Layer(Case(heads=6, kind="float16", sequences=((300, 20), (0, 9))))
    expected, _ = layer.call(layer.after_history(), layer.new_spans())

    def work() -> list[np.ndarray]:
        return [np.asarray(layer.call(layer.after_history(), layer.new_spans())[0]) for _ in range(15)]

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for results in [pool.submit(work) for _ in range(4)]:
            for out in results.result(timeout=120):
                np.testing.assert_array_equal(out, expected)
