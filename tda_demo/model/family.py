"""What is true of a model family, in one record. A family is supported by being in ``FAMILIES``; no other list has it.

What belongs to one model instead, its sizes, windows and rotary positions, is read off its configuration
(``configuration``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..support.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class BlockLayout:
    """Where a layer keeps the matrices of its feed-forward block: dotted paths from the layer.

    Attributes:
        gate: None in plain blocks; the same as ``up`` where one matrix holds both, the rows of gate first.
        function: the path of the activation function, where no module but the layer itself holds the block.
        function_field: the field of the configuration that names the activation function.
    """

    gate: str | None = "mlp.gate_proj"
    up: str = "mlp.up_proj"
    down: str = "mlp.down_proj"
    function: str | None = None
    function_field: str = "hidden_act"

    @property
    def module(self) -> str:
        """The path of the module that computes the block and nothing else; empty where that is the layer."""
        return self.down.rpartition(".")[0]


@dataclass(frozen=True)
class DecoderLayout:
    """A decoder that the compiled CPU step and the GPU's kernel layers know.

    Its layers have RMSNorms, rotary positions, grouped-query attention in ``self_attn`` with the output projection
    ``o_proj``, and a GLU block, ``mlp``. Beside the stack of layers lie the last norm, ``norm``, and ``rotary_emb``.

    Attributes:
        norms: of a layer, in the order they run: before attention and before the block, or before and after each.
        norm_offset: what every norm adds to the weight it stores.
        head_norms: whether queries and keys are normalised head by head, by ``q_norm`` and ``k_norm``.
        qkv: the linears of ``self_attn`` that hold query, key and value: three, or one with all their rows.
    """

    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    norm_offset: float = 0.0
    head_norms: bool = False
    qkv: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")

    @property
    def is_pre_norm(self) -> bool:
        """Whether a layer is x + attention(norm(x)) and then x + block(norm(x))."""
        return len(self.norms) == 2


@dataclass(frozen=True)
class Family:
    """The models of one ``model_type``, as transformers' configurations call it.

    Attributes:
        layers: the dotted path of the stack of layers, from the model.
        decoder: None for families of another layout, whose attention and norms stay transformers' own.
        text_only: whether the model is nothing but a decoder; others run in transformers, or with compiled linears.
        listed: whether messages name it: the text half of a family goes by the name of the whole.
    """

    model_type: str
    layers: str = "model.layers"
    block: BlockLayout = BlockLayout()
    decoder: DecoderLayout | None = DecoderLayout()
    text_only: bool = True
    listed: bool = True


_GEMMA_BLOCK = BlockLayout(function_field="hidden_activation")
_GEMMA_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
FAMILIES = {
    family.model_type: family
    for family in (
        Family("llama"),
        Family("mistral"),
        Family("qwen2"),
        Family("qwen3", decoder=DecoderLayout(head_norms=True)),
        Family("gemma2", block=_GEMMA_BLOCK, decoder=DecoderLayout(_GEMMA_NORMS, norm_offset=1.0)),
        Family(
            "gemma3_text",
            block=_GEMMA_BLOCK,
            decoder=DecoderLayout(_GEMMA_NORMS, norm_offset=1.0, head_norms=True),
            listed=False,
        ),
        Family("gemma3", layers="model.language_model.layers", block=_GEMMA_BLOCK, decoder=None, text_only=False),
        Family(
            "phi3",
            block=BlockLayout(gate="mlp.gate_up_proj", up="mlp.gate_up_proj"),
            decoder=DecoderLayout(qkv=("qkv_proj",)),
        ),
        Family(
            "opt",
            layers="model.decoder.layers",
            block=BlockLayout(None, "fc1", "fc2", function="activation_fn", function_field="activation_function"),
            decoder=None,
        ),
        Family(
            "gpt_neox",
            layers="gpt_neox.layers",
            block=BlockLayout(None, "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
            decoder=None,
        ),
    )
}


def family_of(model: PreTrainedModel) -> Family:
    """The family of ``model``.

    Raises:
        UserError: it is in none of ``FAMILIES``.
    """
    return family_named(model.config.model_type)


def family_named(model_type: str) -> Family:
    """The family of that ``model_type``; raises what ``family_of`` raises."""
    family = FAMILIES.get(model_type)
    if family is None:
        supported = ", ".join(family.model_type for family in FAMILIES.values() if family.listed)
        raise UserError(f"The architecture '{model_type}' is not supported; supported are: {supported}.")
    return family
