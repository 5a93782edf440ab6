"""What competes in the speed table: each decodes some tokens and tells how long each took."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch


class TimedDecoder(Protocol):
    """Something that decodes ``count`` tokens and tells what each took."""

    def times_ms(self, count: int) -> list[float]: ...


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
