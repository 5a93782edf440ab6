"""A model ready to race: weights from wherever they are, in one precision, on one device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..support.environment import use_threads
from ..support.errors import UserError
from ..support.memory import nothing_collected
from ..support.progress import Report, silent
from .chat import chat_ids, end_of_turn
from .feedforward import FeedForward, find_blocks
from .placement import DeviceMap, automatic_device_map, input_device, is_spread
from .precision import PRECISIONS, REFERENCE, choose_precision, loading_arguments, model_dtype, round_weights
from .weights import WeightFolder, embedded, find_weights, gguf_file, gguf_text
from .weights.codes import can_store
from .weights.folder import quiet_transformers
from .weights.folder_codes import read_folder_codes
from .weights.gguf_codes import read_codes

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EMBEDDED = embedded.NAME
__all__ = ["EMBEDDED", "PRECISIONS", "LoadedModel", "load_model"]


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A frozen model with its tokenizer and the view of its feed-forward blocks.

    ``fingerprint`` is a stable hex id of the weights: what is computed from them is filed under it. ``has_four_bits``:
    whether the rows of its matrices, as they are published, are known to have no more.
    """

    name: str
    fingerprint: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    precision: str
    device: torch.device
    blocks: tuple[FeedForward, ...]
    has_four_bits: bool = False

    @property
    def context_length(self) -> int:
        """Most tokens, prompt and answer together, the model was made for."""
        return self.model.config.get_text_config().max_position_embeddings

    @property
    def weight_count(self) -> int:
        """Of the blocks' matrices: what reading a token takes grows with it."""
        linears = (linear for block in self.blocks for linear in block.layer_linears)
        return sum(linear.in_features * linear.out_features for linear in linears)

    @property
    def is_spread(self) -> bool:
        """Whether its parts are in different places; ``device`` is then where token ids go."""
        return is_spread(self.model)

    @property
    def eos_ids(self) -> frozenset[int]:
        """The tokens that end a text; empty for a model that has none.

        Those its ``generation_config`` and its tokenizer name, and the one its chat template ends an answer with.
        """
        config = self.model.generation_config
        listed: Any = config.eos_token_id if config is not None else None
        ids: list[Any] = [*(listed if isinstance(listed, list) else [listed]), self.tokenizer.eos_token_id]
        return frozenset(token for token in [*ids, self._end_of_turn] if isinstance(token, int))

    @cached_property
    def _end_of_turn(self) -> int | None:
        return end_of_turn(self.tokenizer)

    @property
    def ignored(self) -> dict[str, Any]:
        """What its ``generation_config`` asks for that no side applies: both decode as races and commands say."""
        config = self.model.generation_config
        neutral = {"repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
        told = {name: getattr(config, name, None) for name in neutral}
        return {name: value for name, value in told.items() if value not in (None, neutral[name])}

    def prompt_ids(self, prompt: str) -> list[int]:
        """Token ids of ``prompt`` as one user turn of the chat template, or as plain text where there is none.

        Raises:
            UserError: the prompt is blank, or leaves no room for one generated token.
        """
        if not prompt.strip():
            raise UserError("The prompt is empty: type a question or the beginning of a text.")
        # A lone surrogate (half of an emoji, as a browser can send it) is no text that a tokenizer takes.
        text = prompt.encode("utf-8", "replace").decode("utf-8")
        if self.tokenizer.chat_template:
            ids = chat_ids(self.tokenizer, text, self.name)
        else:
            ids = self.tokenizer(text)["input_ids"]
        if not ids:
            raise UserError(f"The prompt holds no text that {self.name} knows: type a question in words.")
        if len(ids) > self.context_length - 1:
            raise UserError(
                f"The prompt is {len(ids):,} tokens long; {self.name} takes at most {self.context_length - 1:,}: "
                "shorten it."
            )
        return ids

    @torch.inference_mode()
    def generate(self, prompt: str, max_new_tokens: int = 64) -> str:
        """The greedy continuation of ``prompt``, without special tokens.

        Raises:
            UserError: see ``prompt_ids``; or ``max_new_tokens`` is below 1.
        """
        from transformers import DynamicCache

        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {max_new_tokens}; it must be at least 1.")
        ids = self.prompt_ids(prompt)
        cache = DynamicCache(config=self.model.config)
        step = torch.tensor([ids], device=self.device)
        new: list[int] = []
        for _ in range(min(max_new_tokens, self.context_length - len(ids))):
            logits = self.model(input_ids=step, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
            token = int(logits[0, -1].argmax())
            if token in self.eos_ids:
                break
            new.append(token)
            step = torch.tensor([[token]], device=self.device)
        return str(self.tokenizer.decode(new, skip_special_tokens=True))


@nothing_collected
def load_model(
    name: str | None = None,
    *,
    precision: str | None = None,
    device: str | None = None,
    device_map: DeviceMap | None = None,
    report: Report = silent,
) -> LoadedModel:
    """Load the embedded model, or the one called ``name``: a hub id, a folder, a ``.gguf`` file.

    Args:
        precision: one of ``PRECISIONS``; None takes the device's default.
        device: ``cpu``, ``cuda`` or ``cuda:N``; None takes a GPU where there is one.
        device_map: as transformers takes it; None is ``auto`` for weights larger than the GPU, else all on ``device``.
        report: told of downloads and conversions.

    Raises:
        UserError: anything the user can mend, in one sentence.
    """
    use_threads(None)
    place = _device(device)
    if device_map is not None and place.type == "cpu":
        precision = precision or REFERENCE
        if precision != REFERENCE:
            raise UserError(f"On a CPU a device map takes the precision {REFERENCE} only, not {precision}.")
    precision = choose_precision(precision, place)
    as_codes = place.type == "cpu" and device_map is None and can_store(precision)
    if as_codes and (gguf := gguf_file(name)):
        text = gguf_text(gguf, report)
        if read := read_codes(gguf, text.folder, precision, report):
            model, has_four_bits = read
            return _of_codes(model, text, precision, has_four_bits)
    weights = find_weights(name, report)
    if as_codes and (model := read_folder_codes(weights.folder, weights.name, precision, report)):
        return _of_codes(model, weights, precision, weights.name == EMBEDDED)
    device_map = device_map or automatic_device_map(weights.folder, precision, place)
    placed = loading_arguments(precision, place) | ({} if device_map is None else {"device_map": device_map})
    model, tokenizer = _read(weights, model_dtype(precision, place), placed)
    _check_numbers(model, weights)
    blocks = find_blocks(model)
    if place.type == "cpu":
        round_weights(model, precision)
    try:
        if not placed:  # else it is where it belongs already
            nn.Module.to(model, place)  # in place; the wrapper around PreTrainedModel.to hides its signature
    except torch.OutOfMemoryError as error:
        raise UserError(f"{weights.name} does not fit into the GPU's memory: use the device cpu.") from error
    return LoadedModel(
        name=weights.name,
        fingerprint=weights.fingerprint,
        model=model.eval().requires_grad_(False),
        tokenizer=tokenizer,
        precision=precision,
        device=place if device_map is None else input_device(model),
        blocks=blocks,
        has_four_bits=weights.name == EMBEDDED,
    )


def _of_codes(model: PreTrainedModel, weights: WeightFolder, precision: str, has_four_bits: bool) -> LoadedModel:
    """A ``model`` for a CPU that holds codes only; its tokenizer is in the folder of ``weights``."""
    return LoadedModel(
        name=weights.name,
        fingerprint=weights.fingerprint,
        model=model.eval().requires_grad_(False),
        tokenizer=_tokenizer(weights),
        precision=precision,
        device=torch.device("cpu"),
        blocks=find_blocks(model),
        has_four_bits=has_four_bits,
    )


def _check_numbers(model: PreTrainedModel, weights: WeightFolder) -> None:
    """Raises UserError where a weight is no number, or infinite: everything computed from it would be so too."""
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.numel() and not parameter.is_meta:
            low, high = parameter.data.aminmax()  # NaN where there is one
            if not (low.isfinite() and high.isfinite()):
                raise UserError(
                    f"The weights of '{weights.name}' are damaged: {name} holds what is no number (NaN or infinite). "
                    f"Fetch {weights.folder} again."
                )


def _device(asked: str | None) -> torch.device:
    if asked is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(asked)
    except RuntimeError as error:
        raise UserError(f"'{asked}' is not a device: use cpu or cuda.") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"The device '{asked}' is not supported: use cpu or cuda.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"There is no usable GPU '{asked}' on this machine: use the device cpu.")
    return device


def _tokenizer(weights: WeightFolder) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    with quiet_transformers():
        try:
            return AutoTokenizer.from_pretrained(weights.folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # every tokenizer class fails in its own way
            raise UserError(_tokenizer_fault(weights)) from error


def _tokenizer_fault(weights: WeightFolder) -> str:
    if (weights.folder / "tokenizer.json").exists():
        return f"The tokenizer.json in {weights.folder} cannot be read: fetch the tokenizer of '{weights.name}' again."
    if (weights.folder / "tokenizer.model").exists() and find_spec("sentencepiece") is None:
        return (
            f"The tokenizer of '{weights.name}' is a SentencePiece model: pip install sentencepiece, and start again."
        )
    return f"The tokenizer of '{weights.name}' is missing or cannot be read: fetch it again into {weights.folder}."


def _read(
    weights: WeightFolder, dtype: torch.dtype, placed: dict[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from transformers import AutoModelForCausalLM

    source: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    tokenizer = _tokenizer(weights)
    with quiet_transformers():
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                weights.folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **source, **placed
            )
        except Exception as error:  # damaged headers, missing shards, sizes that do not match the configuration
            if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
                raise UserError(f"'{weights.name}' does not fit into memory: choose a smaller model.") from error
            if "dispatched on the CPU" in str(error):  # bitsandbytes' matrices stay on the GPUs
                raise UserError(
                    f"'{weights.name}' does not fit the GPUs' memory: choose nf4 or a smaller one."
                ) from error
            raise UserError(
                f"The weights in {weights.folder} are damaged or do not match its config.json: fetch them again (a "
                "folder inside a cache can simply be removed)."
            ) from error
    model, info = loaded
    if info["missing_keys"]:  # transformers would fill these with random numbers
        raise UserError(f"The weights of '{weights.name}' lack {len(info['missing_keys'])} tensors: fetch them again.")
    return model, tokenizer
