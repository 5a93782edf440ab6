"""Any method under lm-evaluation-harness, the field's own: importing this file registers the model ``tda`` with it.

``python -m tda_demo lm-eval`` imports it and hands over to the harness's command line. Releases of the harness that
take ``--plugins`` need only ``lm_eval --plugins tda_demo.evaluate.harness --model tda ...``, from this repository.

A method chooses its neurons from a request's own context, which runs dense; every token of a continuation is then
computed with those neurons only. The context's last token is run again with them: it is where the continuation's first
token is predicted, and in a multiple-choice task often the only one.

What is asked is asked as the harness's own ``hf`` model asks it: tokens, joins, truncation, windows of a running text
and stops are the same, so that at a method's zero setting the numbers are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from ..calibration.sources import PASSAGES
from ..decode.choose import engine_for
from ..decode.text import TextStream, sampler
from ..methods import Method, make_method
from ..methods.plan import Plan
from ..model.loading import load_model
from ..support.errors import UserError
from .generation import tokens
from .scoring import read_texts, sparse_pass

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from ..model.loading import LoadedModel

STRIDE = 128  # tokens of a running text that share one choice of neurons


@register_model("tda")
class MethodLM(TemplateLM):
    """``--model_args model=M,method=tda,cett=0.2``: ``model``, ``method``, ``precision``, ``max_length``, ``stride``.

    Everything else in ``model_args`` is a setting of the method, those that are lists with a semicolon between the
    numbers; ``model`` left out is the embedded one. One request runs at a time, whatever the batch
    size.
    """

    def __init__(
        self,
        model: str | None = None,
        method: str = "tda",
        precision: str | None = None,
        device: str | None = None,
        max_length: int | None = None,
        stride: int = STRIDE,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        self.method = method_of(method, settings)
        # The harness names a GPU where the user named none.
        place = device if torch.cuda.is_available() else "cpu"
        self.lm: LoadedModel = load_model(model, precision=precision, device=place)
        self.tokenizer: Any = self.lm.tokenizer
        self.policy = self.method.bind(self.lm, source=PASSAGES)
        self.max_length = min(int(max_length or self.lm.context_length), self.lm.context_length)
        self.stride = min(int(stride), self.max_length - 1)
        self._device = self.lm.device
        self._last_read: tuple[Any, Any] | None = None  # the last context and what reading it left

    @property
    def eot_token_id(self) -> int:
        token = self.tokenizer.eos_token_id
        return min(self.lm.eos_ids, default=0) if token is None else token

    @property
    def prefix_token_id(self) -> int:
        token = self.tokenizer.bos_token_id
        return self.eot_token_id if token is None else token

    @property
    def tokenizer_name(self) -> str:
        return self.lm.name.replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids; a text that begins with the prefix token, as a chat template's may, gets no second one."""
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(self.tokenizer.decode(self.prefix_token_id))
        return self.tokenizer(string, add_special_tokens=add_special_tokens)["input_ids"]

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """As the harness splits them; but where one token spans the join, which would leave nothing of the continuation
        to score, both are encoded on their own.
        """
        whole, following = super()._encode_pair(context, continuation)
        if not following:
            stripped = context.rstrip()
            following = self.tok_encode(context[len(stripped) :] + continuation, add_special_tokens=False)
        return whole, following

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        answers = []
        for pair, context, continuation in tqdm(requests, desc="Log-likelihoods", disable=disable_tqdm):
            if not 1 <= len(continuation) <= self.max_length:
                raise UserError(
                    f"A continuation has {len(continuation):,} tokens; it must have 1 to {self.max_length:,}, the "
                    "model's maximum length."
                )
            room = self.max_length + 1 - len(continuation)  # a context too long loses its beginning
            answers.append(self._continue(context[-room:], continuation))
            self.cache_hook.add_partial("loglikelihood", pair, answers[-1])
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The text's log-probability, window by window as the harness cuts them, ``stride`` tokens of one at a time.

        The first stride has only the prefix token to choose from.
        """
        answers = []
        for request in tqdm(requests, desc="Rolling", disable=disable_tqdm):
            (text,) = request.args
            total = 0.0
            for window in get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1):
                context, following = make_disjoint_window(window)
                for start in range(0, len(following), self.stride):
                    total += self._continue(context + following[:start], following[start : start + self.stride])[0]
            answers.append(total)
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return answers

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Decodes with the race's sparse arm; the first token comes from the dense prompt, as it does there."""
        return [self._write(*request.args) for request in tqdm(requests, desc="Writing", disable=disable_tqdm)]

    def _continue(self, context: list[int], continuation: list[int]) -> tuple[float, bool]:
        """Log-probability of ``continuation``, and whether every token of it is the most likely one."""
        cache, plan = self._context(context)
        inputs = torch.tensor([[context[-1], *continuation[:-1]]], device=self.lm.device)
        log_p = sparse_pass(self.lm, cache, inputs, plan).logits[0].float().log_softmax(dim=-1)
        expected = torch.tensor(continuation, device=self.lm.device)
        likely = bool((log_p.argmax(dim=-1) == expected).all())
        return float(log_p.gather(1, expected[:, None]).double().sum()), likely

    def _context(self, context: list[int]) -> tuple[Any, Plan]:
        """The KV cache of all but the last token, and the plan; read once for the choices of one question."""
        if self._last_read is None or self._last_read[0] != context:
            # The last token stands twice: a reading scores what follows its prompt, and here nothing does.
            ids = torch.tensor([[*context, context[-1]]], device=self.lm.device)
            reading = read_texts(self.lm, [self.policy], ids, len(context), with_fidelity=False)
            self._last_read = context, (reading.cache, reading.plans[0].plan)
        return self._last_read[1]

    def _write(self, context: str, options: dict[str, Any]) -> str:
        """Raises UserError where the answer's length leaves no room for a prompt."""
        wanted: Any = normalize_gen_kwargs(options)
        room = wanted["max_gen_toks"]
        if not 1 <= room < self.max_length:
            raise UserError(
                f"max_gen_toks is {room:,}; it must be at least 1 and less than the model's maximum length, "
                f"{self.max_length:,}, which the prompt shares."
            )
        stops = handle_stop_sequences(wanted["until"], eos=self.tokenizer.decode(self.eot_token_id))
        begun = bool(self.tokenizer.bos_token) and context.startswith(self.tokenizer.bos_token)
        ids = self.tok_encode(context, add_special_tokens=not begun)[-(self.max_length - room) :]
        engine = engine_for(self.lm, self.policy)
        prefill = engine.prefill(ids, self.policy)
        temperature = wanted.get("temperature", 1.0 if wanted.get("do_sample") else 0.0)
        choose = sampler(temperature, wanted.get("top_p", 1.0), seed=0)
        text = TextStream(self.lm.tokenizer)
        for token in tokens(engine.sparse_arm(prefill, room), prefill.logits, self.lm.eos_ids, choose):
            text.push(token)
            if len(text.tokens) == room or any(stop in text.text for stop in stops):
                break
        text.finish()
        answer = up_to_stop(text.text, stops)
        self.cache_hook.add_partial("generate_until", (context, options), answer)
        return answer


def method_of(name: str, settings: dict[str, Any]) -> Method:
    """The method by name, with settings as the harness read them from ``model_args``.

    Raises:
        UserError: there is no such method or setting, or a value is out of its range.
    """
    return make_method(name, [f"{key}={str(value).replace(';', ',')}" for key, value in settings.items()])


def up_to_stop(text: str, stops: Sequence[str]) -> str:
    """``text`` up to the first of ``stops`` in it."""
    return text[: min([at for stop in stops if stop and (at := text.find(stop)) >= 0], default=len(text))]
