"""The table of precisions: every name has its row, and every order has every name."""

from typing import get_args

from rankrt.artifact.precisions import PRECISIONS, TARGETS, Precision, Target, VariantKey, rank, variant_keys


def test_every_name_has_one_row():
    assert tuple(PRECISIONS) == get_args(Precision)
    assert tuple(TARGETS) == get_args(Target)


def test_no_two_precisions_have_the_same_rank():
    for target in TARGETS:
        assert len({rank(precision, target) for precision in PRECISIONS}) == len(PRECISIONS)


def test_one_precision_is_exact_and_it_is_the_most_faithful():
    assert [row.is_exact for row in PRECISIONS.values()] == [True] + [False] * (len(PRECISIONS) - 1)


def test_a_key_is_called_as_its_files_are():
    assert [str(key) for key in variant_keys("cpu", "int8")] == ["cpu-int8-kernels", "cpu-int8-vnni", "cpu-int8-avx2"]
    assert variant_keys("tensorrt", "int8") == (VariantKey(target="tensorrt", precision="int8"),)
    assert str(VariantKey(target="cuda", precision="fp16")) == "cuda-fp16"
