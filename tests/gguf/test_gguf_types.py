"""The table of tensor types equals the gguf package's."""

import gguf

from realm_jax.gguf import GGMLType


def test_types_have_the_numbers_of_the_package():
    assert {t.name: t.value for t in GGMLType} == {t.name: t.value for t in gguf.GGMLQuantizationType}


def test_types_have_the_sizes_of_the_package():
    theirs = {int(t): sizes for t, sizes in gguf.GGML_QUANT_SIZES.items()}
    # The package gives Q8_1 the float32 scales of ggml's past; ggml-common.h has had halves since, 36 bytes in all.
    assert theirs.pop(GGMLType.Q8_1) == (32, 40)
    ours = {int(t): (t.block_size, t.type_size) for t in GGMLType}
    assert ours.pop(GGMLType.Q8_1) == (32, 36)
    assert ours == theirs


def test_a_type_is_found_by_its_number_and_by_its_name():
    assert GGMLType(12) is GGMLType.Q4_K is GGMLType["Q4_K"]
