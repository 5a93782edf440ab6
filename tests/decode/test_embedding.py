"""A token's embedding without torch is what the model's own table gives, bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numba import njit
from tiny import tiny

from tda_demo.decode.cpu.embedding import TokenEmbedding
from tda_demo.kernels.cpu.embedding import embed
from tda_demo.kernels.formats import encode
from tda_demo.model.loading import LoadedModel
from tda_demo.model.stored import store


@njit
def embedded(arrays, out):
    embed(arrays.rows, arrays.scales, arrays.token[0], out)


def holding_codes(precision: str) -> LoadedModel:
    lm = tiny()
    table = lm.model.get_input_embeddings()
    store(table, encode(table.weight, precision), precision)
    return lm


@pytest.mark.parametrize(
    "lm",
    [
        pytest.param(tiny(), id="floats"),
        pytest.param(tiny("gemma3"), id="scaled"),
        *(pytest.param(holding_codes(precision), id=precision) for precision in ("int8", "bfloat16")),
    ],
)
def test_it_is_the_tables_own(lm: LoadedModel) -> None:
    table = lm.model.get_input_embeddings()
    embedding, out = TokenEmbedding(table), np.empty(lm.model.config.hidden_size, np.float32)
    for token in (0, 3, 57):
        embedding.use(token)
        embedded(embedding.arrays, out)
        with torch.inference_mode():
            np.testing.assert_array_equal(out, table(torch.tensor([token]))[0].numpy())


def test_a_token_that_the_table_has_not_is_refused() -> None:
    embedding = TokenEmbedding(tiny().model.get_input_embeddings())
    for token in (-1, len(embedding.arrays.rows)):
        with pytest.raises(IndexError):
            embedding.use(token)
