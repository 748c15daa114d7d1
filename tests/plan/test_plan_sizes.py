"""Sizes and bounds of a plan, against numbers worked out by hand and against the arrays that a model would hold."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from realm_jax import MeshConfig, gguf, models
from realm_jax.engine.parts import form_of
from realm_jax.nn.rope import RopeFrequencies
from realm_jax.ops.backends import layout_name
from realm_jax.plan.compiling import Compilation, CompiledStep
from realm_jax.plan.devices import DEVICES, TARGETS, target_named
from realm_jax.plan.document import as_json
from realm_jax.plan.programs import Compiled, compile_step
from realm_jax.plan.report import make_plan
from realm_jax.plan.request import PlanRequest
from realm_jax.plan.roofline import Work
from realm_jax.plan.sizes import WeightSize, cache_layers, room, weight_sizes
from realm_jax.plan.traffic import bytes_moved
from realm_jax.sharding import MESH_AXES, split_parts

TINY = sorted((Path(__file__).parents[1] / "data" / "tiny").glob("*.gguf"))
NOTHING = Compilation(steps={}, failure="not asked for")


def mesh(tensor: int = 1) -> dict[str, int]:
    return {axis: tensor if axis == "tensor" else 1 for axis in MESH_AXES}


def bytes_of(leaves: Sequence[Any]) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


@pytest.mark.parametrize("implementation", ["xla", "triton", "tpu"])
@pytest.mark.parametrize("path", TINY, ids=lambda path: path.stem)
def test_weights_are_the_arrays_that_a_model_holds(path: Path, implementation: str) -> None:
    file = gguf.open(path, header_only=True)
    model = models.build(file, dtype=jnp.bfloat16, implementation=implementation, abstract=True)
    held = jax.tree.leaves(nnx.split(model, RopeFrequencies, ...)[2])
    sizes = weight_sizes(file, layout_name(implementation), mesh())
    assert sum(weight.bytes for weight in sizes if not weight.name.startswith("rope_f")) == bytes_of(held)


@pytest.mark.parametrize("target", ["h100", "v5e-8"])
@pytest.mark.parametrize("path", TINY, ids=lambda path: path.stem)
def test_a_header_gives_the_plan_of_the_whole_file(path: Path, target: str, tmp_path: Path) -> None:
    whole = gguf.open(path, header_only=True)
    cut = tmp_path / "header.gguf"
    cut.write_bytes(path.read_bytes()[: min(tensor.start for tensor in whole.tensors.values())])
    request = PlanRequest(target=target, chips=target_named(target).usual, context=96, batch=3)
    plans = [as_json(make_plan(file, request, NOTHING)) for file in (whole, gguf.open(cut, header_only=True))]
    assert plans[0] == plans[1]


def test_smollm2_takes_what_its_shape_says(smollm2_path: Path) -> None:
    """30 layers, width 576, inner width 1536, 9 heads and 3 of keys with 64 channels, 49,152 tokens, a tied head."""
    file = gguf.open(smollm2_path, header_only=True)
    model = models.build(file, dtype=jnp.bfloat16, implementation="triton", abstract=True)
    weights = weight_sizes(file, "blocks", mesh())
    cache = cache_layers(model.cache_spec(), mesh(), context=2048, batch=4, dtype="bfloat16")
    # A block for each 64 positions of every sequence, and the one that nobody owns; keys and values in two bytes.
    assert sum(layer.bytes for layer in cache) == 30 * (4 * 32 + 1) * 64 * 2 * 3 * 64 * 2

    work = Work.of(model, weights, cache)
    layer = 576 * (576 + 2 * 192 + 576) + 3 * 576 * 1536
    decode = work.decode(DEVICES["h100"], batch=4, context=2048)
    assert decode.operations == 4 * (2 * (30 * layer + 49152 * 576) + 30 * 4 * 9 * 64 * 2048)
    kv = 30 * 2 * 3 * 64 * 2
    assert decode.bytes == sum(tensor.nbytes for tensor in file.tensors.values()) + 4 * kv * (2048 + 1)
    assert decode.memory_seconds == pytest.approx(decode.bytes / 3.35e12)
    assert (decode.bound, decode.tokens_per_second) == ("memory", pytest.approx(4 * 3.35e12 / decode.bytes))

    prefill = work.prefill(DEVICES["a100"], tokens=512)
    assert prefill.operations == 512 * 2 * 30 * layer + 2 * 49152 * 576 + 30 * 4 * 9 * 64 * 512 * 513 // 2
    assert (prefill.bound, prefill.tokens_per_second) == ("compute", pytest.approx(512 * 312e12 / prefill.operations))


def test_a_window_bounds_what_is_kept_and_seen() -> None:
    file = gguf.open(TINY[[path.stem for path in TINY].index("gemma3")], header_only=True)
    model = models.build(file, implementation="xla", abstract=True)
    windows = {spec.window for spec in model.cache_spec() if spec.window is not None}
    assert windows
    cache = cache_layers(model.cache_spec(), mesh(), context=4096, batch=1, dtype="bfloat16")
    for layer in cache:
        seen = layer.bytes_in_use(4096) / layer.bytes_per_position
        assert seen == (4096 if layer.spec.window is None else layer.spec.window)
        # Blocks of 64 positions; a window that does not begin with one touches another.
        kept = jax.tree.leaves(layer.array)[0].shape[0]
        blocks = 64 if layer.spec.window is None else -(-layer.spec.window // 64) + 1
        assert layer.share_read(1, 4096, 1) == min(1.0, blocks / kept)


def test_what_splits_and_what_does_not() -> None:
    """Matrices are halved over two devices, vectors are whole on both."""
    file = gguf.open(TINY[[path.stem for path in TINY].index("llama")], header_only=True)
    whole, halves = (weight_sizes(file, "blocks", mesh(count)) for count in (1, 2))
    for one, half in zip(whole, halves, strict=True):
        assert half.bytes == one.bytes // (2 if one.is_matrix else 1), one.name
        assert (half.split is not None) == one.is_matrix


def test_devices_with_the_same_keys_share_the_queries() -> None:
    """Two heads of keys over four devices: 12 sequences are in a step of 16 tokens, of which each device has four."""
    file = gguf.open(TINY[[path.stem for path in TINY].index("llama")], header_only=True)
    model = models.build(file, dtype=jnp.bfloat16, implementation="tpu", abstract=True)
    assert model.cache_spec()[0].num_kv_heads == 2
    for count, parts, sharing in ((1, 1, 1), (2, 2, 1), (4, 1, 4)):
        limits: dict[str, Any] = {"context": 128, "batch": 12, "dtype": "bfloat16"}
        layer = cache_layers(model.cache_spec(), mesh(count), **limits)[0]
        assert (layer.parts, layer.devices_sharing(512)) == (parts, sharing)
        assert layer.sequences_each(12) == (12 if sharing == 1 else 4)
        assert (layer.sequences_each(3), layer.sequences_each(1)) == (1 if count == 4 else 3, 1)


def test_parts_of_splits() -> None:
    sizes = {"data": 2, "tensor": 4, "expert": 3}
    assert split_parts((None, "tensor"), sizes) == 4
    assert split_parts((("expert", "tensor"), None), sizes) == 12
    assert split_parts((), sizes) == 1


def test_experts_are_read_as_far_as_they_are_expected_to_be_chosen() -> None:
    file = gguf.open(TINY[[path.stem for path in TINY].index("mixtral")], header_only=True)
    model = models.build(file, implementation="xla", abstract=True)
    weights = weight_sizes(file, "blocks", mesh())
    cache = cache_layers(model.cache_spec(), mesh(), context=64, batch=1, dtype="bfloat16")
    work = Work.of(model, weights, cache)
    experts = sum(weight.bytes for weight in weights if "_exps" in weight.name)
    config = model.layers[0].mlp.config
    missed = 1 - config.experts_per_token / config.num_experts
    assert 0 < missed < 1
    assert not work.tied
    embeddings = file.tensors["token_embd.weight"]
    more = experts * (missed - missed**5) + 4 * embeddings.nbytes / embeddings.shape[0]
    assert work.weight_bytes(5) - work.weight_bytes(1) == pytest.approx(more, abs=1)  # both are rounded


@pytest.mark.parametrize(
    ("num_experts", "per_token", "tokens", "parts"),
    [(128, 8, 1, 8), (128, 8, 1, 4), (128, 8, 16, 8), (32, 4, 1, 4), (8, 2, 1, 8), (8, 2, 3, 1)],
)
def test_the_device_with_the_most_experts_counts(num_experts: int, per_token: int, tokens: int, parts: int) -> None:
    """The mean of 4,000 draws; that choices are independent is an approximation, worst where few of few are chosen."""
    stack = WeightSize(
        name="blk.0.ffn_up_exps.weight",
        shape=(num_experts, 32, 32),
        stored=1024 * num_experts,
        parts=parts,
        split="experts",
    )
    work = Work(weights=[stack], cache=(), tied=True, num_experts=num_experts, experts_per_token=per_token, heads=())
    rng = np.random.default_rng(0)
    drawn = rng.random((4000, tokens, num_experts)).argpartition(per_token)[..., :per_token]
    chosen = np.zeros((4000, num_experts), bool)
    np.put_along_axis(chosen, drawn.reshape(4000, -1), True, axis=1)
    mean = chosen.reshape(4000, parts, -1).sum(2).max(1).mean()
    assert work.experts_read(tokens) == pytest.approx(mean, rel=0.04)
    assert work.weight_bytes(tokens) == round(1024 * work.experts_read(tokens))


def test_room_ends_where_the_next_token_does_not_fit() -> None:
    found = room(lambda context, batch: 10 * context * batch, context=50, batch=2, trained=4096, free=2005)
    assert (found.context, found.batch) == (100, 4)
    assert room(lambda context, batch: 10 * context * batch, context=50, batch=2, trained=60, free=2005).context == 60
    none = room(lambda context, batch: 10 * context * batch, context=50, batch=2, trained=60, free=-1)
    assert (none.context, none.batch) == (None, None)


def test_targets_have_the_makers_figures() -> None:
    assert {name: target.most for name, target in TARGETS.items()} == {
        "h100": 8, "a100": 8, "v5e-1": 1, "v5e-4": 4, "v5e-8": 8, "v6e-1": 1, "v6e-4": 4, "v6e-8": 8
    }  # fmt: skip
    for device in DEVICES.values():
        assert device.source and device.int8 > 1.9 * device.bfloat16
    # Of a GPU the description that XLA compiles for has its own figures, which round alike.
    for name in ("h100", "a100"):
        fields = dict(line.strip().split(": ", 1) for line in DEVICES[name].description.splitlines() if ": " in line)
        assert float(fields["memory_bandwidth"]) == pytest.approx(DEVICES[name].bandwidth, rel=0.01)
        assert float(fields["device_memory_size"]) >= DEVICES[name].memory
    with pytest.raises(ValueError, match="target must be one of h100, a100, v5e-1, .*, got 'tpu'"):
        target_named("tpu")
    with pytest.raises(ValueError, match="tp must be 1 to 4 on v6e-4, got 8"):
        target_named("v6e-4").chips(8)


@pytest.mark.parametrize("field", ["context", "batch"])
def test_nothing_is_planned_for_no_tokens(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} must be at least 1, got 0"):
        PlanRequest(**{"target": "h100", "chips": 1, "context": 64, "batch": 1, field: 0})


def test_steps_of_a_plan_are_the_engine_s() -> None:
    shapes = PlanRequest(target="h100", chips=1, context=20000, batch=3).shapes(2)
    decode, prefill = shapes["decode"], shapes["prefill"]
    assert (decode.tokens, decode.sequences, decode.rows, decode.pages) == (4, 4, 4, 313)
    assert (prefill.tokens, prefill.sequences, prefill.rows, prefill.pages) == (512, 1, 1, 313)


@pytest.fixture(scope="module")
def steps() -> tuple[Compiled, Compiled, Compiled, int]:
    """A decode step of a tiny model for the CPU: whole, with one layer, without any; and the bytes of its cache."""
    file = gguf.open(TINY[[path.stem for path in TINY].index("llama")], header_only=True)
    model = models.build(file, dtype=jnp.bfloat16, implementation="xla", abstract=True)
    request = PlanRequest(target="h100", chips=1, context=128)
    devices = MeshConfig().mesh(jax.devices("cpu"))
    layers, caches = (
        list(model.layers),
        cache_layers(model.cache_spec(), mesh(), context=128, batch=1, dtype="bfloat16"),
    )
    assert len(layers) == 2 and form_of(layers[0]) == form_of(layers[1])

    def compiled(count: int) -> Compiled:
        model.layers = nnx.List(layers[:count])
        arrays = [layer.array for layer in caches[:count]]
        return compile_step(model, request.shapes(1)["decode"], arrays, devices, "cpu")

    return compiled(2), compiled(1), compiled(0), sum(layer.bytes for layer in caches)


def test_a_compiled_step_writes_its_cache_in_place(steps: tuple[Compiled, Compiled, Compiled, int]) -> None:
    whole, *_, cache_bytes = steps
    assert whole.aliased_bytes == cache_bytes
    assert whole.kernels == 0


def test_a_step_is_told_from_some_of_its_layers(steps: tuple[Compiled, Compiled, Compiled, int]) -> None:
    whole, one, outside, _ = steps
    moved = [bytes_moved(step.text).bytes for step in steps[:3]]
    row = CompiledStep(
        step="decode",
        layers=[0],
        seconds=0.0,
        argument_bytes=one.argument_bytes,
        aliased_bytes=0,
        output_bytes=0,
        temporary_bytes=0,
        custom_calls={},
        kernels=0,
        bytes_moved=moved[1],
        bytes_moved_by={},
        unknown_loops=0,
        outside_argument_bytes=outside.argument_bytes,
        outside_bytes_moved=moved[2],
    )
    assert not row.whole
    # The compiler may fuse what ends a layer with what begins the next.
    assert row.all_bytes_moved([1, 1]) == pytest.approx(moved[0], rel=0.05)
    # The frequencies of the rotation are an argument as soon as there is a layer: they count with each, not once.
    assert 0 <= row.all_argument_bytes([1, 1]) - whole.argument_bytes <= 4 * 64
