"""A second module tree over a model's weights: what it shares, and what is its own."""

from __future__ import annotations

from typing import Any

import torch
from tiny import tiny

from tda_demo.decode.shared_model import share_weights
from tda_demo.model.loading import LoadedModel


def test_weights_are_shared_and_modules_are_not(lm: LoadedModel) -> None:
    twin = share_weights(lm.model)
    assert [id(each) for each in twin.parameters()] == [id(each) for each in lm.model.parameters()]
    assert [id(each) for each in twin.buffers()] == [id(each) for each in lm.model.buffers()]
    assert [name for name, _ in twin.named_modules()] == [name for name, _ in lm.model.named_modules()]
    assert not {id(each) for each in twin.modules()} & {id(each) for each in lm.model.modules()}
    assert twin.config is lm.model.config and twin.training is lm.model.training is False
    ids = torch.tensor([[3, 5, 8]])
    assert torch.equal(twin(input_ids=ids).logits, lm.model(input_ids=ids).logits)


def test_what_points_at_a_module_points_at_its_twin() -> None:
    model: Any = tiny("llama").model
    layer = model.model.layers[0]
    model.first, model.listed, model.bound = layer, [layer.mlp], layer.mlp.forward
    twin: Any = share_weights(model)
    assert twin.first is twin.model.layers[0] is not layer
    assert twin.listed[0] is twin.bound.__self__ is twin.model.layers[0].mlp is not layer.mlp


def test_hooks_come_along_and_those_put_in_later_stay_in_the_twin() -> None:
    model = tiny("llama").model
    seen: list[str] = []
    model.register_forward_pre_hook(lambda *_: seen.append("first"))
    twin = share_weights(model)
    twin.register_forward_pre_hook(lambda *_: seen.append("second"))
    ids = torch.tensor([[3]])
    model(input_ids=ids)
    twin(input_ids=ids)
    assert seen == ["first", "first", "second"]
