"""What a model's chat template makes of a prompt, and which token ends its answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..support.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ANSWER = "tda"  # stands for an answer, to see what the template writes after it


def chat_ids(tokenizer: PreTrainedTokenizerBase, text: str, name: str) -> list[int]:
    """Token ids of ``text`` as one user turn of the model called ``name``, up to where its answer begins.

    Raises:
        UserError: the template fails; which it may do in any way, being a program that came with the model.
    """
    turns = [{"role": "user", "content": text}]
    try:
        encoded: Any = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)
    except Exception as error:
        raise UserError(
            f"The chat template of {name} cannot be used ({_in_one_line(error)}): mend it in the model's folder, or "
            "remove it to race plain text."
        ) from error
    return encoded["input_ids"]


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token that the chat template writes right after an answer; None where it writes none.

    Files converted from elsewhere often forget to name it among the tokens that end a text.
    """
    if not tokenizer.chat_template:
        return None
    turns = [{"role": "user", "content": _ANSWER}, {"role": "assistant", "content": _ANSWER}]
    try:
        text: Any = tokenizer.apply_chat_template(turns, tokenize=False)
        after = tokenizer(text[text.rindex(_ANSWER) + len(_ANSWER) :], add_special_tokens=False)["input_ids"]
    except Exception:  # whoever races with it is told why it fails
        return None
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    return after[0] if after and after[0] in special else None


def _in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
