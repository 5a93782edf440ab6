"""What a race tells of its price on the way, against one pass over the whole text."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from plain import plain_tda
from tiny import PROMPT, tiny, tiny_tokenizer

from tda_demo.decode.arm import Arm, Prefill
from tda_demo.decode.choose import engine_for
from tda_demo.decode.text import TextStream
from tda_demo.evaluate.judge import Judge
from tda_demo.methods import GRIFFIN
from tda_demo.race import Lane, Priced
from tda_demo.race.price import Pricing, SlicedPricing, SteppedPricing, pricing_of


@pytest.mark.parametrize("kind", [SlicedPricing, SteppedPricing])
def test_what_is_judged_bit_by_bit_is_what_one_pass_over_the_whole_text_says(kind: type[Pricing]) -> None:
    """Renewed sets too, whose dense steps fall anywhere in a slice."""
    lm = tiny()
    for method in (
        plain_tda(cett=0.5, online=True),
        GRIFFIN(keep=0.5),
        GRIFFIN(keep=0.5, refresh=5),
        GRIFFIN(keep=0.5, first=4),
    ):
        policy = method.bind(lm)
        engine = engine_for(lm, policy)
        prefill = engine.prefill(lm.prompt_ids(PROMPT), policy)
        tokens = [7 + at % 60 for at in range(30)]
        pricing = pricing_of(engine, {"sparse": prefill}, 30)
        assert type(pricing) is SteppedPricing
        if kind is SlicedPricing:
            pricing = SlicedPricing(engine, {"sparse": prefill})
        told = list(judged_on_the_way(pricing, engine.dense_arm(prefill, 30), prefill, tokens))
        whole = Judge(engine, [prefill]).read(tokens[:-1])[0]
        compared, price = whole.compare(tokens[1:]), pricing.prices["sparse"]
        assert price.agrees == compared.agrees.tolist() == [same for event in told for same in event.agrees]
        assert price.kl == pytest.approx(compared.kl.tolist(), abs=2e-4)
        assert price.kl == [kl for event in told for kl in event.kl]
        assert price.cett == pytest.approx(whole.cett, abs=1e-5)
        assert [len(event.kl) for event in told] == [8, 16, 5]


def judged_on_the_way(pricing: Pricing, arm: Arm, prefill: Prefill, tokens: list[int]) -> Iterator[Priced]:
    """What it tells of a dense ``arm`` that writes ``tokens``, whatever its logits."""
    coming = iter(tokens)
    stream = TextStream(tiny_tokenizer())
    lane = Lane("dense", arm, lambda _logits: next(coming), stream, frozenset(), len(tokens), "length")
    list(lane.start(prefill.logits))
    while lane.ended is None:
        list(lane.advance())
        yield from pricing.go_on(lane)
    yield from pricing.finish(lane)
