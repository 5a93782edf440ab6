"""What the page serves beside itself: one endpoint, its own scripts, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from browser import QUESTION, ROOT
from gradio_client import Client
from gradio_client.exceptions import AppError


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[Client]:
    client = Client(address, verbose=False)
    yield client
    client.close()


def test_the_api_is_one_endpoint(client: Client) -> None:
    described = client.view_api(return_format="dict")
    assert isinstance(described, dict)
    assert list(described["named_endpoints"]) == ["/race"] and not described["unnamed_endpoints"]
    names = [parameter["parameter_name"] for parameter in described["named_endpoints"]["/race"]["parameters"]]
    expected = (
        "prompt cett max_new_tokens model precision online temperature top_p seed method settings rival rival_settings"
    )
    assert names == expected.split()


def test_the_api_returns_the_documented_json(client: Client) -> None:
    told = client.predict(QUESTION, cett=0.1, max_new_tokens=8, api_name="/race")
    assert set(told) >= {
        "model", "device", "precision", "method", "settings", "prompt_tokens", "arms", "speedup", "byte_bound",
        "efficiency", "sparsity", "quality", "environment",
    }  # fmt: skip
    assert told["settings"]["cett"] == 0.1 and set(told["arms"]) == {"dense", "sparse"}
    assert told["arms"]["dense"]["tokens"] == 8 and len(told["arms"]["dense"]["step_ms"]) == 7


def test_the_api_races_any_method(client: Client) -> None:
    told = client.predict(QUESTION, method="griffin", settings={"keep": 0.75}, max_new_tokens=8, api_name="/race")
    assert (told["method"], told["settings"]["keep"]) == ("griffin", 0.75)
    assert told["sparsity"]["mean"] == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        ({"method": "griffin", "cett": 0.2}, "'griffin' has no setting 'cett'"),
        ({"method": "griffin", "settings": {"keep": 2}}, "from 0 to 1"),
        ({"method": "no-such"}, "does not offer that method"),
        ({"prompt": " "}, "prompt is empty"),
        ({"max_new_tokens": 0}, "from 1 to 512"),
        ({"max_new_tokens": -1}, "from 1 to 512"),
        ({"max_new_tokens": 10**9}, "from 1 to 512"),
        ({"cett": "NaN"}, "from 0 to 0.7"),
        ({"cett": 9}, "from 0 to 0.7"),
        ({"model": "no/such-model"}, "does not offer that model"),
        ({"model": "/etc"}, "does not offer that model"),
        ({"precision": "int3"}, "does not offer that precision"),
    ],
)
def test_the_api_refuses_in_a_sentence(client: Client, wish: dict[str, object], says: str) -> None:
    with pytest.raises(AppError, match=says):
        client.predict(**{"prompt": QUESTION, **wish}, api_name="/race")


def test_nothing_can_be_uploaded(address: str) -> None:
    assert httpx.post(f"{address}gradio_api/upload", files={"files": ("a.txt", b"some text")}).status_code == 404


def test_only_the_page_s_own_scripts_are_served(address: str) -> None:
    assert httpx.get(f"{address}gradio_api/file={ROOT / 'assets' / 'plot.js'}").status_code == 200
    for secret in (ROOT / "app.py", ROOT / "tda_demo" / "data" / "passages.jsonl", "/etc/passwd"):
        assert httpx.get(f"{address}gradio_api/file={secret}").status_code == 403
