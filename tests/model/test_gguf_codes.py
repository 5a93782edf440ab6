"""A GGUF file read straight into a storage format, against the ``gguf`` package's own values; no float copies."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFWriter, dequantize
from gguf.quants import quantize
from hypothesis import given
from hypothesis import strategies as st
from model_files import TOKENS, WIDTH, count_conversions, write_gguf
from parity import TOLERANCE, logits_in_floats
from torch import nn

from tda_demo.decode.choose import engine_for
from tda_demo.kernels import q4
from tda_demo.kernels.cpu import cores, gguf_blocks
from tda_demo.kernels.formats import encode, encode_by_neuron
from tda_demo.methods import GRIFFIN
from tda_demo.methods.low_bit import model_copy_of
from tda_demo.model import stored as model_stored
from tda_demo.model.feedforward import find_blocks
from tda_demo.model.loading import LoadedModel, load_model
from tda_demo.model.precision import REFERENCE, round_weights
from tda_demo.model.stored import StoredEmbedding, StoredLinear, store, stored_codes
from tda_demo.model.weights.gguf_codes import code_by_code
from tda_demo.support.errors import UserError


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("codes") / "tiny.gguf")


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1"])
@given(
    rows=st.integers(1, 5),
    groups=st.integers(1, 5),
    seed=st.integers(0, 2**31),
    size=st.sampled_from([1.0, 1e-6, 1e3]),
    flat=st.booleans(),
)
def test_codes_stand_for_what_the_gguf_package_says(
    kind: str, rows: int, groups: int, seed: int, size: float, flat: bool
) -> None:
    weight = size * np.random.default_rng(seed).standard_normal((rows, 32 * groups), dtype=np.float32)
    if flat:  # a group of zeros, and one of equal values
        weight[0, :32] = 0
        weight[-1, -32:] = size
    tensor_type = GGMLQuantizationType[kind]
    blocks = quantize(weight, tensor_type)
    expected = dequantize(blocks, tensor_type)
    np.testing.assert_array_equal(q4.decode(code_by_code(blocks, kind)).numpy(), expected)


def random_blocks(kind: str, rows: int, blocks: int, seed: int, exponent: int) -> np.ndarray:
    """Uint8 [rows, bytes]: any codes, and numbers in half precision of about 2^``exponent``."""
    random = np.random.default_rng(seed)
    nbytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]][1]
    data = random.integers(0, 256, (rows * blocks, nbytes), dtype=np.uint8)
    halves = HALVES[kind]
    numbers = np.ldexp(random.uniform(-1, 1, (len(data), halves.stop // 2 - halves.start // 2)), exponent)
    data[:, halves] = numbers.astype(np.float16).view(np.uint8)
    return data.reshape(rows, -1)


HALVES = {  # which bytes of a block are numbers in half precision
    **dict.fromkeys(("Q8_0", "Q4_0", "Q5_0"), slice(0, 2)),
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), slice(0, 4)),
    "Q6_K": slice(208, 210),
}
SIZES = {"rows": st.integers(1, 4), "blocks": st.integers(1, 3), "seed": st.integers(0, 2**31)}


@pytest.mark.parametrize("kind", gguf_blocks.KINDS)
@given(**SIZES, exponent=st.integers(-24, 8))  # from the least half on
def test_blocks_have_the_values_that_the_gguf_package_gives_them(
    kind: str, rows: int, blocks: int, seed: int, exponent: int
) -> None:
    data = random_blocks(kind, rows, blocks, seed, exponent)
    with cores(2):
        values = gguf_blocks.unpack(data, kind, 2)
        codes, scales = gguf_blocks.round_to_int8(data, kind, 2)
    expected = dequantize(data, GGMLQuantizationType[kind])
    np.testing.assert_array_equal(values.view(np.uint32), expected.view(np.uint32))  # zeros have a sign
    rounded = encode(torch.from_numpy(expected), "int8")
    np.testing.assert_array_equal(codes, rounded.codes)
    np.testing.assert_array_equal(scales, rounded.scales)


@pytest.mark.parametrize("kind", gguf_blocks.KINDS)
@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("last", [False, True])
def test_the_scale_of_a_row_that_holds_no_number_is_none(kind: str, broken: float, last: bool) -> None:
    data = random_blocks(kind, 3, 2, 0, -5)
    at = HALVES[kind].stop - 2 if last else HALVES[kind].start  # the minimum alone, or the scale
    data[1, at : at + 2] = np.array([broken], np.float16).view(np.uint8)
    with cores(2):
        _, scales = gguf_blocks.round_to_int8(data, kind, 2)
    assert np.isfinite(scales).tolist() == [True, False, True]


@given(**SIZES, exponent=st.integers(-12, 2))
def test_q4_k_is_taken_over_code_by_code(rows: int, blocks: int, seed: int, exponent: int) -> None:
    data = random_blocks("Q4_K", rows, blocks, seed, exponent)
    expected = dequantize(data, GGMLQuantizationType.Q4_K)
    values = q4.decode(code_by_code(data, "Q4_K")).numpy()
    scale, minimum = np.abs(data.reshape(-1, 144)[:, :4].view(np.float16).astype(np.float64)).T
    lost = (63 * 15 * scale + 63 * minimum) * 2.0**-11 + 16 * 2.0**-25  # of a half's digits, or of its least step
    assert (np.abs(values - expected).reshape(-1, 256).max(axis=1) <= lost).all()


def test_a_scale_that_is_no_number_is_refused() -> None:
    blocks = quantize(np.ones((1, 32), np.float32), GGMLQuantizationType.Q4_0)
    for broken in (np.float16(np.nan), np.float16(60000)):  # the second's minimum has no half
        blocks[0, :2] = np.frombuffer(broken.tobytes(), np.uint8)
        with pytest.raises(ValueError, match="scale"):
            code_by_code(blocks, "Q4_0")


def rounded(gguf: Path, precision: str) -> LoadedModel:
    """The model by way of floats."""
    lm = load_model(str(gguf), precision=REFERENCE, device="cpu")
    round_weights(lm.model, precision)
    return lm


@pytest.mark.parametrize("precision", ["q4", "int8", "nf4"])
def test_a_file_read_as_codes_computes_what_one_converted_to_floats_does(gguf: Path, precision: str) -> None:
    lm, expected = load_model(str(gguf), precision=precision, device="cpu"), rounded(gguf, precision)
    ids = torch.tensor([[3, 7, 40, 41, 90]])
    torch.testing.assert_close(*(logits_in_floats(each, ids) for each in (lm, expected)), rtol=1e-4, atol=1e-5)
    logits = expected.model(ids).logits
    assert (lm.model(ids).logits - logits).abs().max() < TOLERANCE[precision] * logits.abs().max()
    assert (lm.fingerprint, lm.blocks[0].d_ff) == (expected.fingerprint, expected.blocks[0].d_ff)
    for block, other in zip(lm.blocks, expected.blocks, strict=True):
        torch.testing.assert_close(block.output_norms, other.output_norms)


@pytest.mark.parametrize("precision", ["q4", "int8", "nf4"])
def test_a_head_of_its_own_and_the_table_are_read_each(precision: str, tmp_path: Path) -> None:
    head = np.random.default_rng(1).standard_normal((len(TOKENS), WIDTH), dtype=np.float32) / 8
    kind = GGMLQuantizationType.Q8_0

    def add_head(writer: GGUFWriter) -> None:
        writer.add_tensor("output.weight", quantize(head, kind), raw_dtype=kind)

    path = write_gguf(tmp_path / "untied.gguf", change=add_head, kinds=lambda _: "Q5_0")
    lm, expected = load_model(str(path), precision=precision, device="cpu"), rounded(path, precision)
    table, own = lm.model.get_input_embeddings(), lm.model.get_output_embeddings()
    assert isinstance(table, StoredEmbedding) and isinstance(own, StoredLinear) and table.stored is not own.stored
    ids = torch.tensor([[3, 7, 40, 41, 90]])
    torch.testing.assert_close(*(logits_in_floats(each, ids) for each in (lm, expected)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["Q8_0", "Q5_1"])
def test_a_matrix_that_holds_no_number_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "damaged.gguf", kinds=lambda _: kind)
    tensor = next(each for each in GGUFReader(path).tensors if each.name == "blk.1.ffn_up.weight")
    content = bytearray(path.read_bytes())
    content[tensor.data_offset : tensor.data_offset + 2] = np.array([np.nan], np.float16).tobytes()
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"damaged: blk\.1\.ffn_up\.weight holds what is no number"):
        load_model(str(path), precision="int8", device="cpu")


def test_tokens_are_computed_from_the_codes(gguf: Path) -> None:
    lm = load_model(str(gguf), precision="int8", device="cpu")
    for module in lm.model.modules():
        if isinstance(module, StoredLinear):
            for tokens in (1, 5):
                x = torch.randn(1, tokens, module.in_features)
                expected = nn.functional.linear(x, module.weight, module.bias)
                assert (module(x) - expected).abs().max() < TOLERANCE["int8"] * expected.abs().max()


@pytest.mark.parametrize("precision", ["q4", "int8", "nf4"])
def test_a_matrix_larger_than_is_decoded_at_once(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_stored, "_AT_ONCE", 100)
    weight = torch.randn(37, 70)
    by_row, by_neuron = (nn.Linear(70, 37) for _ in range(2))
    store(by_row, encode(weight, precision), precision)
    store(by_neuron, encode_by_neuron(weight, precision), precision)
    x = torch.randn(2, 3, 70, requires_grad=True)  # which is never multiplied by compiled code
    for linear in (by_row, by_neuron):
        expected = nn.functional.linear(x, linear.weight, linear.bias)
        torch.testing.assert_close(linear(x), expected, rtol=1e-5, atol=1e-5)


def test_no_matrix_is_held_in_floats_and_nothing_is_converted(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conversions = count_conversions(monkeypatch)
    lm = load_model(str(gguf), precision="q4", device="cpu")
    matrices = [module for module in lm.model.modules() if isinstance(module, nn.Linear | nn.Embedding)]
    assert all(isinstance(module, StoredLinear | StoredEmbedding) for module in matrices)
    assert all(parameter.dim() == 1 for parameter in lm.model.parameters())
    assert not conversions
    head, table = lm.model.get_output_embeddings(), lm.model.get_input_embeddings()
    assert isinstance(head, StoredLinear) and isinstance(table, StoredEmbedding) and head.stored is table.stored


def test_the_compiled_step_reads_the_codes_and_shares_them(gguf: Path) -> None:
    lm, expected = load_model(str(gguf), precision="q4", device="cpu"), rounded(gguf, "q4")
    arms, totals = [], []
    for model in (lm, dataclasses.replace(expected, precision="q4")):
        policy = GRIFFIN(0.5).bind(model)
        engine = engine_for(model, policy)
        prefill = engine.prefill([3, 7, 40, 41, 90], policy)
        arms.append([engine.dense_arm(prefill, 4), engine.sparse_arm(prefill, 4)])
        totals.append(engine.step_bytes.dense)
    table_row = WIDTH * (4 - 1) - 4  # of a float32 table, and of an int8 one with its scale
    assert totals[1] - totals[0] == table_row
    for ours, theirs in zip(*arms, strict=True):
        for token in (5, 60, 7):
            expected_logits = theirs.step(token)  # prompts are multiplied in another order: a rounding may tip over
            worst = (ours.step(token) - expected_logits).abs().max()
            assert worst < TOLERANCE["q4"] * expected_logits.abs().max()
    neurons = arms[0][0].layout.neurons
    held = [codes.codes for codes in stored_codes(lm.model)]
    shared = arms[0][0].layout.shared
    assert sum(np.shares_memory(shared.qkv, codes) for codes in held) == 3 * len(lm.blocks)
    for array in (neurons.gate, neurons.up, neurons.down, shared.out):
        assert sum(np.shares_memory(array, codes) for codes in held) == len(lm.blocks)


@pytest.mark.parametrize("precision", ["q4", "int8", "nf4"])
def test_a_low_bit_copy_is_that_of_the_same_values(gguf: Path, precision: str) -> None:
    stored, floats = load_model(str(gguf), precision=precision, device="cpu"), rounded(gguf, precision)
    ours, theirs = (model_copy_of(lm) for lm in (stored, dataclasses.replace(floats, precision=precision)))
    for name in ("gate", "up", "rows", "tiles"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    blocks = find_blocks(floats.model)
    for block, other, exact in zip(ours.blocks, theirs.blocks, blocks, strict=True):
        # Codes over the output scales are whole numbers; floats over them may miss these by a digit.
        values, expected = q4.decode_columns(block.down), q4.decode_columns(other.down)
        assert (values != expected).float().mean() < 0.01
        errors = [float((each - exact.output_weight()).norm()) for each in (values, expected)]
        assert errors[0] == pytest.approx(errors[1], rel=1e-4)
        assert block.gate is not None and np.shares_memory(block.gate.records, ours.gate)  # type: ignore[arg-type]
        assert np.shares_memory(block.down.tiles, ours.down)


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (lambda name: "Q8_0" if "down" in name or "embd" in name else "Q4_0", True),  # these q4 holds in eight bits
        (lambda name: "Q8_0" if name == "blk.1.attn_v.weight" else "Q4_1", False),
    ],
    ids=["four", "more"],
)
def test_whether_q4_would_round_a_file_is_known(tmp_path: Path, kinds: Callable[[str], str], expected: bool) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", kinds=kinds)
    assert load_model(str(path), precision="int8", device="cpu").has_four_bits is expected


def test_a_file_cut_short_is_refused(gguf: Path, tmp_path: Path) -> None:
    broken = tmp_path / "short.gguf"
    whole = gguf.read_bytes()
    broken.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(UserError, match=r"short\.gguf.*damaged or cut short"):
        load_model(str(broken), precision="q4", device="cpu")
