"""The low-bit copy: what it holds, and its loops, those of this processor and the plain ones, against float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from tda_demo.kernels import q4
from tda_demo.kernels.cpu import q4_columns, q4_rows, q4_tiles

SHAPES = {"rows": st.integers(1, 37), "columns": st.integers(1, 200), "seed": st.integers(0, 2**31)}


def some(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def code(records: np.ndarray, row: int, column: int) -> float:
    """A value of rows, taken out by itself."""
    record, group, place = records[row, column // 64], column % 64 // 32, column % 32
    both = int(record[16 * group + place % 16])
    scale, minimum = record[32:].view(np.float16)[[group, 2 + group]].astype(np.float64)
    return (both >> 4 if place >= 16 else both & 15) * scale + minimum


def column_code(tiles: np.ndarray, neuron: int, output: int) -> float:
    """A value of columns, taken out by itself."""
    tile, place = tiles[neuron // 32], output % 32
    split = 128 * (len(tile) // 640)
    halves, codes = tile[:split].reshape(-1, 128), tile[split:].reshape(-1, 512)
    both = int(codes[output // 32, neuron % 32 // 2 * 32 + place % 16 * 2 + neuron % 2])
    scale, minimum = halves[output // 32].view(np.float16)[[neuron % 32, 32 + neuron % 32]].astype(np.float64)
    return (both >> 4 if place >= 16 else both & 15) * scale + minimum


def representable(rows: int, columns: int, seed: int) -> torch.Tensor:
    """Groups along rows with a scale and a minimum in half precision, their first two codes 0 and 15."""
    random = np.random.default_rng(seed)
    codes = random.integers(0, 16, (rows, -(-columns // 32), 32))
    codes[:, :, 0], codes[:, :, 1] = 15, 0
    scales, minima = (random.standard_normal(codes.shape[:2]).astype(np.float16)[:, :, None] for _ in range(2))
    values = codes * np.abs(scales).astype(np.float32) + minima.astype(np.float32)
    return torch.from_numpy(values.reshape(rows, -1)[:, :columns].astype(np.float32))


@settings(deadline=None)  # the first example compiles
@given(**SHAPES)
def test_what_four_bits_can_hold_comes_back(rows: int, columns: int, seed: int) -> None:
    whole = representable(rows, columns // 32 * 32 + 32, seed)
    assert torch.equal(q4.decode(q4.encode(whole)), whole)
    down = whole.T
    assert torch.equal(q4.decode_columns(q4.encode_columns(down, np.ones(len(down), np.float32))), down)


def by_rows(*parts: q4.Numbers) -> np.ndarray:
    copy = q4.empty_rows(sum(len(numbers) for numbers, _ in parts), parts[0][0].shape[1])
    q4.write_rows(parts, copy)
    return copy.records


def by_columns(output_scales: np.ndarray, *parts: q4.Numbers) -> np.ndarray:
    neurons = sum(len(numbers) for numbers, _ in parts)
    tiles = q4.empty_tiles(q4.tiles_of(neurons), len(output_scales))
    q4.write_columns(parts, q4.Q4Columns(tiles, neurons, output_scales))
    return tiles


def test_a_matrix_encoded_in_parts_is_the_whole() -> None:
    weight, scales = some(70, 90, 0), np.full(70, 0.5, np.float32)
    halves = q4.as_numbers(weight[:33]), q4.as_numbers(weight[33:])
    np.testing.assert_array_equal(by_rows(*halves), q4.encode(weight).records)
    over_scales = weight.T / 0.5
    halves = q4.as_numbers(over_scales[:64]), q4.as_numbers(over_scales[64:])
    np.testing.assert_array_equal(by_columns(scales, *halves), q4.encode_columns(weight, scales).tiles)


@settings(deadline=None)  # the first example compiles
@given(**SHAPES)
def test_whole_numbers_times_factors_are_encoded_as_their_products(rows: int, columns: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    codes = random.integers(-127, 128, (rows, columns)).astype(np.int8)
    factors = random.uniform(0, 2, rows).astype(np.float32)
    products = torch.from_numpy(codes.astype(np.float32) * factors[:, None])
    np.testing.assert_array_equal(by_rows((codes, factors)), q4.encode(products).records)
    ones = np.ones(columns, np.float32)
    np.testing.assert_array_equal(by_columns(ones, (codes, factors)), q4.encode_columns(products.T, ones).tiles)


@settings(deadline=None)  # the first example compiles
@given(**SHAPES)
def test_a_copy_is_close_and_each_code_in_its_place(rows: int, columns: int, seed: int) -> None:
    weight = some(rows, columns, seed)
    part = q4.encode(weight)
    values = q4.decode(part)
    padded = torch.nn.functional.pad(weight, (0, -columns % 32)).view(rows, -1, 32)
    span = (padded.amax(dim=2) - padded.amin(dim=2)).repeat_interleave(32, dim=1)[:, :columns]
    assert ((values - weight).abs() <= 0.12 * span + 1e-2).all()  # half a step, and what the ends are clipped by
    row, column = rows - 1, columns - 1
    assert values[row, column] == pytest.approx(code(part.records, row, column), rel=1e-5, abs=1e-6)
    down = q4.encode_columns(weight.T, np.full(columns, 0.5, np.float32))
    values = q4.decode_columns(down)
    assert values[column, row] == pytest.approx(column_code(down.tiles, row, column) / 2, rel=1e-5, abs=1e-6)
    assert part.nbytes == rows * part.neuron_nbytes == rows * -(-columns // 64) * 40
    assert down.nbytes == -(-rows // 32) * 32 * down.neuron_nbytes == -(-rows // 32) * -(-columns // 32) * 640


def test_groups_searched_for_err_less_than_their_ends_would() -> None:
    weight = some(64, 576, 0)
    groups = weight.view(64, -1, 32)
    lowest, step = (
        groups.amin(dim=2, keepdim=True),
        (groups.amax(dim=2, keepdim=True) - groups.amin(dim=2, keepdim=True)) / 15,
    )
    plain = ((groups - lowest) / step).round() * step + lowest
    assert (q4.decode(q4.encode(weight)) - weight).norm() < 0.94 * (plain.view_as(weight) - weight).norm()


@pytest.mark.parametrize("value", [0.0, 0.25, -3.0, 1e-7, 1e6], ids=str)
def test_groups_of_one_value_and_of_values_beyond_half_precision(value: float) -> None:
    part = q4.encode(torch.full((2, 70), value))
    expected = min(value, 65504.0)
    torch.testing.assert_close(q4.decode(part), torch.full((2, 70), expected), rtol=1e-3, atol=6e-8)


@settings(deadline=None)  # the first example compiles
@given(st.floats(-7e4, 7e4, width=32))
def test_half_precision_is_rounded_to_as_numpy_does(number: float) -> None:
    part = q4.encode(torch.full((1, 64), number))
    scales, minima = part.records[0, 0, 32:].view(np.float16).reshape(2, 2)
    assert (scales == 0).all()
    assert (minima == np.float16(np.clip(number, -65504, 65504))).all()


@settings(deadline=None)
@given(rows=st.integers(1, 40), seed=st.integers(0, 2**31), size=st.sampled_from([1e-6, 1.0, 300.0]))
def test_sixteen_groups_are_searched_as_each_by_itself(rows: int, seed: int, size: float) -> None:
    weight = size * some(rows, 64, seed)
    whole = q4.encode(weight).records
    np.testing.assert_array_equal(whole, np.concatenate([q4.encode(row[None]).records for row in weight]))


@njit
def rows_product(records, x, first, last, out, codes, factors):
    q4_rows.quantise(x, codes, factors)
    q4_rows.matvec(records, codes, factors, first, last, out)


@njit
def plain_product(records, x, first, last, out, codes, factors):
    q4_rows.quantise(x, codes, factors)
    for i in range(first, last):
        q4_rows.plain_row_times(records, i, 0, codes, factors, i - first, out)


@njit
def plain_four(records, x, out, codes, factors):
    q4_rows.quantise(x, codes, factors)
    q4_rows.plain_rows_times(records, 0, 2, codes, factors, 0, out)


def room(part: q4.Q4Rows) -> tuple[np.ndarray, np.ndarray]:
    records = part.records.shape[1]
    return np.full(64 * records, 99, np.int8), np.empty((records, 4), np.float32)


@settings(deadline=None)  # the first example compiles
@given(**SHAPES, size=st.sampled_from([1.0, 1e-3, 1e3]))
def test_rows_times_a_vector(rows: int, columns: int, seed: int, size: float) -> None:
    random = np.random.default_rng(seed)
    part = q4.encode(size * some(rows, columns, seed))
    x = random.standard_normal(columns).astype(np.float32)
    x[random.integers(0, columns)] *= 100  # its group loses precision
    first, last = sorted(random.integers(0, rows + 1, 2).tolist())
    rounded = q4.round_groups(torch.from_numpy(x)[None])[0]
    expected = (q4.decode(part).double() @ rounded.double()).numpy()
    close = 1e-6 * float((q4.decode(part).abs() @ rounded.abs()).max())
    for product in (rows_product, plain_product):
        codes, factors = room(part)
        out = np.full(rows + 1, 7, np.float32)
        product(part.records, x, first, last, out, codes, factors)
        np.testing.assert_allclose(out[: last - first], expected[first:last], rtol=1e-5, atol=close)
        assert (out[last - first :] == 7).all()
    units = np.repeat(factors[:, :2].reshape(-1), 32)[:columns]
    np.testing.assert_allclose(rounded, x, atol=0.51 * float(units.max()))
    found = q4.multiply(part, torch.from_numpy(x)[None])[0].numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=close)


def test_the_plain_loop_takes_four_rows_too() -> None:
    part = q4.encode(some(8, 90, 0))
    x, out = some(1, 90, 1)[0].numpy(), np.full(8, 7, np.float32)
    plain_four(part.records, x, out, *room(part))
    expected = q4.multiply(part, torch.from_numpy(x)[None])[0].numpy()
    np.testing.assert_allclose(out[:8:2], expected[:8:2], rtol=1e-5, atol=1e-5)
    assert (out[1::2] == 7).all()


def test_zeros_times_rows_and_scales_that_are_subnormal() -> None:
    part = q4.encode(1e-6 * some(5, 64, 0))
    assert 0 < np.abs(part.records[:, :, 32:36].copy().view(np.float16)).max() < 6e-5
    out = np.empty(5, np.float32)
    for product in (rows_product, plain_product):
        product(part.records, np.zeros(64, np.float32), 0, 5, out, *room(part))
        assert (out == 0).all()
        product(part.records, np.ones(64, np.float32), 0, 5, out, *room(part))
        np.testing.assert_allclose(out, q4.decode(part).sum(dim=1), rtol=1e-4, atol=1e-10)


@njit
def columns_sum(tiles, first, last, activations, out):
    q4_columns.add_columns(tiles, first, last, activations, out)


@njit
def plain_columns_sum(tiles, first, last, activations, out):
    chunks = out.shape[0] // 32
    sums, weights, units = (
        np.zeros((chunks, 8), np.float32),
        np.empty((chunks, 64), np.int8),
        np.empty(chunks, np.float32),
    )
    for tile in range(first, last):
        q4_columns.plain_add_tile(tiles, tile, activations, 32 * (tile - first), sums, weights, units, out)
    for j in range(out.shape[0]):
        out[j] += sums[j // 32].sum()


def likely_weights(part: q4.Q4Columns, activations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is rounded, and what a whole weight is worth, by the columns' definition.

    float64 [tiles, chunks, 32], of each neuron its size over that worth, and [tiles, chunks].
    """
    chunks = part.tiles.shape[1] // 640
    halves = part.tiles[:, : 128 * chunks].reshape(-1, chunks, 128)[:, :, :64]
    steps = halves.copy().view(np.float16).astype(np.float64)
    weights = np.abs(activations.reshape(-1, 1, 32) * steps)
    units = weights.max(axis=2) / 127
    return weights / np.where(units > 0, units, 1)[:, :, None], units


@settings(deadline=None)
@given(
    neurons=st.integers(1, 140),
    outputs=st.integers(1, 100),
    seed=st.integers(0, 2**31),
    biggest=st.floats(1, 100),
    varied=st.booleans(),
)
def test_columns_added_up(neurons: int, outputs: int, seed: int, biggest: float, varied: bool) -> None:
    random = np.random.default_rng(seed)
    scales = random.uniform(0.5, 2, outputs).astype(np.float32)
    part = q4.encode_columns(some(outputs, neurons, seed), scales)
    tiles = part.tiles
    first, last = sorted(random.integers(0, len(tiles) + 1, 2).tolist())
    activations = np.zeros(32 * len(tiles), np.float32)
    activations[:neurons] = random.standard_normal(neurons) if varied else 1
    activations[random.integers(0, neurons)] *= biggest
    activations[: 32 * first] = activations[32 * last :] = 0
    values = q4.decode_columns(part).double().numpy() / scales[:, None]
    expected = values @ activations[:neurons]
    # A rounded product is off by half a unit, which counts up to 7.5 times; a sum that begins at 1 by its last digit.
    weights, units = likely_weights(part, activations)
    rounding = 1e-5 * np.abs(expected).max() + np.spacing(np.float32(1)) * len(tiles)
    error = np.repeat(units.sum(axis=0) * 32 * 0.5 * 7.5, 32)[:outputs] + rounding
    results = []
    for add_up in (columns_sum, plain_columns_sum):
        out = np.ones(tiles.shape[1] // 640 * 32, np.float32)
        add_up(tiles, first, last, activations[32 * first : 32 * last], out)
        assert (np.abs(out[:outputs] - 1 - expected) <= error).all()
        results.append(out)
    # One in the middle between two whole numbers may be rounded up by the one and down by the other.
    in_the_middle = (np.abs(weights % 1 - 0.5) < 1e-4).sum(axis=2)
    tipped = np.repeat((in_the_middle * units).sum(axis=0) * 7.5, 32)
    assert (
        np.abs(np.subtract(*results)) <= tipped + 1e-4 * (np.abs(results[1]) + max(1, np.abs(expected).max()))
    ).all()
    found = q4.multiply_columns(part, torch.from_numpy(activations[:neurons])[None])[0].numpy()
    np.testing.assert_allclose(found, expected * scales, rtol=1e-4, atol=1e-4 * max(1, np.abs(expected).max()))


def test_sums_of_columns_stay_in_sixteen_bits() -> None:
    """Equal weights and the highest codes: of 32 neurons these sums would not fit."""
    down = torch.full((32, 32), 15.0)
    down[0] = 0  # codes 0 of every group, all others 15
    part = q4.encode_columns(down, np.ones(32, np.float32))
    activations = np.ones(32, np.float32)
    for add_up in (columns_sum, plain_columns_sum):
        out = np.zeros(32, np.float32)
        add_up(part.tiles, 0, 1, activations, out)
        np.testing.assert_allclose(out, down.sum(dim=1), rtol=0.01, atol=32 * 0.5 * 7.5 / 127)


def test_nothing_times_columns() -> None:
    tiles = q4.encode_columns(some(40, 20, 0), np.ones(40, np.float32)).tiles
    for add_up in (columns_sum, plain_columns_sum):
        out = np.zeros(64, np.float32)
        add_up(tiles, 0, 1, np.zeros(32, np.float32), out)
        add_up(tiles, 1, 1, np.zeros(0, np.float32), out)
        assert (out == 0).all()


@settings(deadline=None)
@given(neurons=st.integers(1, 70), outputs=st.integers(1, 100), seed=st.integers(0, 2**31), threads=st.integers(1, 3))
def test_copied_columns_are_those_chosen(neurons: int, outputs: int, seed: int, threads: int) -> None:
    random = np.random.default_rng(seed)
    part = q4.encode_columns(some(outputs, neurons, seed), np.ones(outputs, np.float32))
    chosen = np.flatnonzero(random.random(neurons) < 0.6)
    tiles = np.full((-(-len(chosen) // 32), *part.tiles.shape[1:]), 255, np.uint8)
    q4_tiles.gather_columns(part.tiles.view(np.uint16), chosen, threads, tiles.view(np.uint16))
    copied = q4.decode_columns(q4.Q4Columns(tiles, len(tiles) * 32, part.output_scales))
    assert torch.equal(copied[:, : len(chosen)], q4.decode_columns(part)[:, chosen])
    assert (copied[:, len(chosen) :] == 0).all()
