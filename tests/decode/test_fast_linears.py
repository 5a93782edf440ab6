"""The transformers model with compiled linears, against transformers itself, for what the compiled step cannot run."""

from __future__ import annotations

import copy
import dataclasses
import gc
import subprocess
import sys
import threading
from collections.abc import Callable

import numba
import psutil
import pytest
import torch
from families import CONFIGS
from parity import PROMPT_IDS, TOLERANCE, of_config, random_sets, stored, worst_error, zeroed_logits
from plain import plain_tda
from tiny import tiny
from torch import nn
from transformers import Gemma3Config, GPTNeoXConfig, OPTConfig, Phi3Config

from tda_demo.decode.arm import Prefill
from tda_demo.decode.cpu.fast_linears import CompiledLinear, FastLinearsEngine
from tda_demo.decode.cpu.rest_blocks import PackedRest, packed_rest
from tda_demo.decode.eager import EagerEngine
from tda_demo.kernels.cpu import cores
from tda_demo.kernels.cpu.linear import NeuronMajor, RowMajor
from tda_demo.kernels.formats import FORMATS, encode, encode_by_neuron
from tda_demo.methods import TDA, ActiveSets
from tda_demo.methods.low_bit import low_bit_rest
from tda_demo.model.loading import LoadedModel
from tda_demo.race import RaceSettings, race

pytestmark = pytest.mark.usefixtures("two_threads")

ROW = {"float32": 4 * 32, "bfloat16": 2 * 32, "int8": 32 + 4, "nf4": 32 + 4, "q4": 40}  # bytes of a row of 32 columns


def multimodal_gemma3() -> LoadedModel:
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
    }
    config = Gemma3Config(
        text_config={**CONFIGS["gemma3"].to_dict(), "vocab_size": 97},
        vision_config=vision,
        mm_tokens_per_image=4,
        image_token_index=96,
        boi_token_index=95,
        eoi_token_index=94,
    )
    return of_config(config)


def long_rope_phi3() -> LoadedModel:
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "rope_theta": 10000.0}
    changes = {"rope_parameters": rope, "original_max_position_embeddings": 20}  # passed while decoding
    return of_config(Phi3Config(**{**CONFIGS["phi3"].to_dict(), **changes}))


def projected_opt() -> LoadedModel:
    changes = {"word_embed_proj_dim": 20, "do_layer_norm_before": False}
    return of_config(OPTConfig(**{**CONFIGS["opt"].to_dict(), **changes}))


def odd_gpt_neox() -> LoadedModel:
    changes = {"hidden_size": 36, "num_attention_heads": 3, "intermediate_size": 33, "attention_bias": False}
    return of_config(GPTNeoXConfig(**{**CONFIGS["gpt_neox"].to_dict(), **changes}))


def tied_gpt_neox() -> LoadedModel:
    return of_config(GPTNeoXConfig(**{**CONFIGS["gpt_neox"].to_dict(), "tie_word_embeddings": True}))


def prefilled(lm: LoadedModel, active: ActiveSets) -> tuple[FastLinearsEngine, Prefill]:
    engine = FastLinearsEngine(lm)
    return engine, dataclasses.replace(engine.prefill(PROMPT_IDS, TDA(cett=0).bind(lm)), plan=active)


@pytest.mark.parametrize("precision", FORMATS)
@pytest.mark.parametrize("family", ["opt", "gpt_neox"])
def test_logits_are_those_of_transformers_in_every_format(family: str, precision: str) -> None:
    assert worst_error(stored(tiny(family), precision), FastLinearsEngine) < TOLERANCE[precision]


@pytest.mark.parametrize(
    "make",
    [multimodal_gemma3, long_rope_phi3, projected_opt, odd_gpt_neox, tied_gpt_neox],
    ids=lambda make: make.__name__,
)
def test_logits_of_variations_are_those_of_transformers(make: Callable[[], LoadedModel]) -> None:
    assert worst_error(stored(make(), "int8"), FastLinearsEngine) < TOLERANCE["int8"]


@pytest.mark.parametrize("counts", [(0, 0, 0), (1, 1, 1), (70, 70, 70), (0, 69, 3)])
@pytest.mark.parametrize("precision", FORMATS)
@pytest.mark.parametrize("make", [lambda: tiny("opt"), lambda: tiny("gpt_neox"), long_rope_phi3])
def test_any_active_set_gives_the_logits_of_zeroed_neurons(
    make: Callable[[], LoadedModel], counts: tuple[int, ...], precision: str
) -> None:
    lm = stored(make(), precision)
    active = random_sets(lm, counts)
    engine, prefill = prefilled(lm, active)
    arm = engine.sparse_arm(prefill, 1)
    expected = zeroed_logits(lm, active, 40)
    assert (arm.step(40) - expected).abs().max() < TOLERANCE[precision] * expected.abs().max()
    assert [each.shape[1] for each in arm.activations()] == list(counts)


@pytest.mark.parametrize("counts", [(0, 0, 0), (1, 33, 70)])
@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize("make", [lambda: tiny("opt"), odd_gpt_neox, long_rope_phi3, multimodal_gemma3])
def test_neurons_left_out_contribute_what_their_copy_says(
    make: Callable[[], LoadedModel], precision: str, counts: tuple[int, ...]
) -> None:
    """The loops round activations times scales to int8, which narrow models do not average out."""
    lm = stored(make(), precision)
    kept = tuple(min(count, lm.blocks[0].d_ff) for count in counts)
    engine, prefill = prefilled(lm, ActiveSets(random_sets(lm, kept).masks, low_bit_rest(lm)))
    arm = engine.sparse_arm(prefill, 1)
    expected = EagerEngine(lm).sparse_arm(prefill, 1).step(40)
    assert (arm.step(40) - expected).norm() < 3e-2 * expected.norm()
    assert [each.shape[1] for each in arm.activations()] == list(kept)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("make", [lambda: tiny("opt"), long_rope_phi3])
def test_a_rest_is_computed_by_any_number_of_threads(make: Callable[[], LoadedModel], threads: int) -> None:
    lm = make()
    sets = ActiveSets(random_sets(lm, (0, 37, 69)).masks, low_bit_rest(lm))
    rest = packed_rest(sets, lm.model.config)
    assert isinstance(rest, PackedRest) and sets.rest is not None
    x = torch.randn(1, 1, 32)
    for block, mask in zip(lm.blocks, sets.masks, strict=True):
        with cores(threads):
            out, again = (rest.output(block, x, ~mask) for _ in range(2))
        expected = sets.rest.output(block, x, ~mask)
        assert torch.equal(out, again) and (out - expected).norm() <= 3e-2 * expected.norm()  # relu may give zeros


def test_a_rest_goes_with_its_set() -> None:
    lm = tiny("opt")
    engine, prefill = prefilled(lm, ActiveSets(random_sets(lm, (0, 9, 30)).masks, low_bit_rest(lm)))
    arm = engine.dense_arm(prefill, 3)
    expected = engine.dense_arm(prefill, 1).step(40)
    arm.use(prefill.plan)
    arm.use(None)
    assert torch.equal(arm.step(40), expected)


@pytest.mark.parametrize("precision", FORMATS)
def test_an_active_set_keeps_its_codes_and_scales(precision: str) -> None:
    torch.manual_seed(0)
    linear, chosen = nn.Linear(23, 9), torch.tensor([0, 4, 7])
    down = NeuronMajor.of(linear, precision)
    rows, columns = encode(linear.weight, precision), encode_by_neuron(linear.weight, precision)
    taken = down.take(chosen.numpy()).neurons
    assert (taken.codes == columns.codes[chosen]).all() and (taken.block_scales == columns.block_scales[chosen]).all()
    assert (taken.output_scales == columns.output_scales).all()
    up = RowMajor.of(linear, precision).take(chosen.numpy())
    assert (up.rows.codes == rows.codes[chosen]).all() and (up.rows.scales == rows.scales[chosen]).all()


@pytest.mark.parametrize("layout", [RowMajor, NeuronMajor])
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (5, 4), (130, 67)])
@pytest.mark.parametrize("bias", [True, False])
def test_kernels_on_any_shape_and_a_strided_input(
    layout: type[RowMajor | NeuronMajor], shape: tuple[int, int], bias: bool
) -> None:
    linear = nn.Linear(*shape, bias=bias).requires_grad_(False)
    x = torch.randn(shape[0], 2)[:, 1]
    torch.testing.assert_close(layout.of(linear, "float32")(x), linear(x), rtol=1e-5, atol=1e-5)


def test_equal_inputs_give_equal_bits() -> None:
    matrix = NeuronMajor.of(nn.Linear(301, 40), "bfloat16")
    x = torch.randn(301)
    assert all(torch.equal(matrix(x), matrix(x)) for _ in range(20))


@pytest.mark.parametrize("precision", FORMATS)
def test_bytes_by_hand_for_opt(precision: str) -> None:
    """Codes and scales, biases and norms, a row of each embedding table; the tied head counts in full."""
    lm = stored(tiny("opt"), precision)
    engine, prefill = prefilled(lm, random_sets(lm, (7, 0, 70)))
    d, layers, vocabulary, d_ff = 32, 3, 97, 70
    row, output_scale = ROW[precision], 4 if precision in ("int8", "q4") else 0  # q4 has int8 in down and in the head
    column = (ROW["int8"] if precision == "q4" else row) - output_scale
    neuron = row + 4 + column  # its row of up with a bias, its column of down
    rest_of_layer = 4 * d * (row + 4) + d * (output_scale + 4) + 4 * 4 * d
    head = vocabulary * ROW["int8" if precision in ("nf4", "q4") else precision]
    other = layers * rest_of_layer + 2 * 4 * d + head + 2 * 4 * d
    assert engine.dense_arm(prefill, 1).weight_bytes == other + layers * d_ff * neuron
    assert engine.sparse_arm(prefill, 1).weight_bytes == other + (7 + 0 + 70) * neuron


@pytest.mark.parametrize("family", ["opt", "gpt_neox"])
def test_float32_bytes_are_those_of_plain_transformers(family: str) -> None:
    lm = tiny(family)
    engine, prefill = prefilled(lm, random_sets(lm, (3, 30, 70)))
    assert engine.dense_arm(prefill, 1).weight_bytes == EagerEngine(lm).dense_arm(prefill, 1).weight_bytes
    assert engine.sparse_arm(prefill, 1).weight_bytes == EagerEngine(lm).sparse_arm(prefill, 1).weight_bytes


def test_a_vision_tower_is_neither_copied_nor_counted() -> None:
    names = FastLinearsEngine(multimodal_gemma3()).linears
    assert names and not any("vision" in name for name in names)


def test_several_rows_go_through_the_original_forward() -> None:
    lm = stored(tiny("opt"), "int8")
    engine, prefill = prefilled(lm, random_sets(lm, (70, 70, 70)))
    theirs = lm.blocks[0].up
    mine = engine.dense_arm(prefill, 1).model.get_submodule("model.decoder.layers.0.fc1")
    assert isinstance(mine, CompiledLinear)
    x = torch.randint(-(2**15) + 1, 2**15, (2, 3, 32)) / 2.0**14  # as elements are rounded, where the largest is one
    x[..., 5] = (2**15 - 1) / 2.0**14
    assert torch.equal(mine(x), theirs(x))
    row = x[:1, :1]
    torch.testing.assert_close(mine(row), theirs(row), rtol=1e-5, atol=1e-5)
    assert mine(row).shape == (1, 1, 70) and mine(row[0]).shape == (1, 70) and mine(row[0, 0]).shape == (70,)


def test_the_shared_model_stays_as_it_was() -> None:
    lm = tiny("opt")
    before = copy.deepcopy(lm.model.state_dict())
    engine, prefill = prefilled(lm, random_sets(lm, (5, 6, 7)))
    engine.warm_up()
    for arm in (engine.dense_arm(prefill, 1), engine.sparse_arm(prefill, 1)):
        arm.step(40)
    assert not any(isinstance(module, CompiledLinear) for module in lm.model.modules())
    assert not any(module._forward_pre_hooks for module in lm.model.modules())
    after = lm.model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_the_matrices_are_made_once_a_model_and_go_with_it() -> None:
    from tda_demo.decode.cpu import fast_linears

    lm = tiny("opt")
    linears = FastLinearsEngine(lm).linears
    assert FastLinearsEngine(lm).linears is linears
    kept = len(fast_linears._models)
    del lm
    gc.collect()
    assert len(fast_linears._models) < kept


def test_two_engines_do_not_disturb_each_other() -> None:
    """Arms of one model in two threads decode what each decodes alone."""
    lm = stored(tiny("gpt_neox"), "int8")
    counts = ((2, 60, 9), (70, 1, 33))
    tokens = list(range(20, 60))

    def decode(active: ActiveSets) -> torch.Tensor:
        engine, prefill = prefilled(lm, active)
        arm = engine.sparse_arm(prefill, len(tokens))
        return torch.stack([arm.step(token).clone() for token in tokens])

    sets = [random_sets(lm, each) for each in counts]
    alone = [decode(active) for active in sets]
    together: dict[int, torch.Tensor] = {}
    workers = [threading.Thread(target=lambda i=i: together.update({i: decode(sets[i])})) for i in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(torch.equal(together[i], alone[i]) for i in (0, 1))


def test_kernels_take_the_threads_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny("opt")
    engine, prefill = prefilled(lm, random_sets(lm, (70, 70, 70)))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    arm, seen = engine.dense_arm(prefill, 1), []
    product = RowMajor.__call__
    monkeypatch.setattr(RowMajor, "__call__", lambda *given: seen.append(numba.get_num_threads()) or product(*given))
    with cores(8):
        before = numba.get_num_threads()
        arm.step(40)
        assert numba.get_num_threads() == before
    assert seen and set(seen) == {1}


def test_starting_the_kernels_leaves_torch_its_threads() -> None:
    """In a process of its own, where nothing has started numba's threads yet."""
    code = """
import torch
from tda_demo.kernels.cpu import cores
torch.set_num_threads(1)
with cores(64):
    pass
assert torch.get_num_threads() == 1
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_memory_is_flat_over_many_races() -> None:
    lm = tiny("opt")
    process = psutil.Process()

    def races(n: int) -> int:
        for _ in range(n):
            list(race(lm, plain_tda(cett=0.4, online=True), "w5 w9 w17 w30", RaceSettings(max_new_tokens=4)))
        gc.collect()
        return process.memory_info().rss

    before = races(10)
    assert races(30) - before < 20e6
