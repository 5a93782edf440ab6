"""The MLP view against the modules it views."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES, tiny_model
from transformers import BertConfig, BertModel, Gemma3Config, Gemma3ForConditionalGeneration, Gemma3TextConfig

from tda_demo.model.feedforward import FeedForward, find_blocks
from tda_demo.model.hooks import observe
from tda_demo.support.errors import UserError

ACTIVATION = {
    "gemma2": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "gemma3": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "opt": torch.relu,
    "gpt_neox": torch.nn.functional.gelu,
}


def formula(block: FeedForward, x: torch.Tensor, family: str) -> torch.Tensor:
    """a = act(x Wg) * (x Wu) or act(x W1 + b1), in float64, from the block's matrices alone."""
    act = ACTIVATION.get(family, torch.nn.functional.silu)
    up = block.up.weight.double()
    bias = 0 if block.up.bias is None else block.up.bias.double()
    if family == "phi3":
        gate, up = block.linears[0].weight.double().split(block.d_ff)
        return act(x @ gate.T) * (x @ up.T)
    if block.gate is not None:
        return act(x @ block.gate.weight.double().T) * (x @ up.T)
    return act(x @ up.T + bias)


@pytest.mark.parametrize("family", FAMILIES)
def test_activations_seen_are_those_of_the_formula(family: str) -> None:
    model = tiny_model(family)
    blocks = find_blocks(model)
    inputs: list[torch.Tensor] = []
    seen: list[torch.Tensor] = []
    for block in blocks:
        block.linears[0].register_forward_pre_hook(lambda _module, args: inputs.append(args[0]))
    with observe(blocks, lambda _block, activations: seen.append(activations)):
        model(input_ids=torch.arange(3, 20)[None])
    assert [block.layer for block in blocks] == list(range(model.config.num_hidden_layers))
    assert all(block.d_ff == 70 for block in blocks)
    for block, x, activations in zip(blocks, inputs, seen, strict=True):
        expected = formula(block, x.reshape(-1, x.shape[-1]).double(), family)
        torch.testing.assert_close(activations.double(), expected, rtol=1e-4, atol=1e-5)


def test_nothing_is_seen_after_the_context() -> None:
    model = tiny_model("llama")
    seen: list[int] = []
    with pytest.raises(RuntimeError), observe(find_blocks(model), lambda block, _: seen.append(block.layer)):
        raise RuntimeError
    model(input_ids=torch.tensor([[5]]))
    assert seen == []


def test_gemma3_with_a_vision_tower() -> None:
    text = Gemma3TextConfig(
        vocab_size=97, hidden_size=32, intermediate_size=70, num_hidden_layers=2, num_attention_heads=4, head_dim=8
    )
    vision = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config={**vision, "image_size": 28}))
    assert [block.d_ff for block in find_blocks(model)] == [70, 70]


def test_unknown_architecture_is_named_with_the_supported_ones() -> None:
    model = BertModel(BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=40))
    with pytest.raises(UserError, match=r"'bert' is not supported; supported are: llama, .*gpt_neox"):
        find_blocks(model)
