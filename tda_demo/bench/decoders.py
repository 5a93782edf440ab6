"""What competes in the speed table: each decodes some tokens and tells how long each took."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from ..decode.arm import Arm


class Decoder(Protocol):
    """Something that decodes ``count`` tokens and tells what each took."""

    def times_ms(self, count: int) -> list[float]: ...


class ArmDecoder:
    """An arm that goes on greedily, and starts over from the prompt when its room is used up."""

    def __init__(self, make: Callable[[], Arm], first: int, room: int) -> None:
        self.make, self.first, self.room = make, first, room
        self.left = 0

    def times_ms(self, count: int) -> list[float]:
        times = []
        for _ in range(count):
            if self.left == 0:
                self.arm, self.token, self.left = self.make(), self.first, self.room
            begin = time.perf_counter()
            self.token = int(self.arm.step(self.token).argmax())
            times.append((time.perf_counter() - begin) * 1e3)
            self.left -= 1
        return times


class StockGenerate:
    """transformers' own ``generate``; a token's time is the gap between two of its tokens."""

    def __init__(self, model: Any, ids: list[int]) -> None:
        self.model, self.ids = model, torch.tensor([ids], device=model.device)

    def times_ms(self, count: int) -> list[float]:
        moments: list[float] = []

        class Stamps:
            def put(self, _: object) -> None:
                moments.append(time.perf_counter())

            def end(self) -> None:
                pass

        self.model.generate(
            self.ids,
            attention_mask=torch.ones_like(self.ids),
            max_new_tokens=count + 1,
            min_new_tokens=count + 1,
            do_sample=False,
            streamer=Stamps(),
        )
        return (np.diff(moments[1:]) * 1e3).tolist()  # the first call hands over the prompt


class LlamaCpp:
    """llama-cpp-python on the embedded model's own GGUF file."""

    def __init__(self, path: Path, ids: list[int], threads: int) -> None:
        from llama_cpp import Llama  # type: ignore[import-not-found]

        self.llama = Llama(str(path), n_ctx=1024, n_threads=threads, verbose=False)
        self.ids = ids

    def times_ms(self, count: int) -> list[float]:
        self.llama.reset()
        self.llama.eval(self.ids)
        times = []
        for _ in range(count):
            begin = time.perf_counter()
            self.llama.eval([int(self.llama.sample(temp=0.0))])
            times.append((time.perf_counter() - begin) * 1e3)
        return times
