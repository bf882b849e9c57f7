"""Random input for what takes anything from outside: readers of files, bodies and addresses of the server, saved models.

    python benchmarks/fuzz.py --cases 10000

Hypothesis draws the cases and reduces what fails to the smallest input it finds. Two runs draw the same cases. A case passes
if the right thing comes out, or an error that says what is wrong; whatever else happens is a fault, printed with its input.
"""

from __future__ import annotations

import argparse
import json
import math
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

Outcomes = Counter[str]

_TEXT = st.text(max_size=40) | st.sampled_from(
    ["", " ", "\0", "\ud800", "<|endoftext|>", "a" * 5000, "é", "👩‍👩‍👧", "\u202e"]
)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4),
    max_leaves=8,
)


# --- the server -------------------------------------------------------------------------------------------------------


def server(cases: int) -> Outcomes:
    """Bodies of `/v1/embeddings` and addresses of the search: a client's mistake is a 4xx in OpenAI's form, never a 5xx."""
    from starlette.testclient import TestClient

    import ssmoe_embed
    from ssmoe_embed.serving.app import create_app

    seen: Outcomes = Counter()
    model = ssmoe_embed.load(progress=False)
    app = create_app(model, name="ssmoe/tiny", map_size=0)
    text = st.text(max_size=40) | st.sampled_from(["a text", "x" * 5000, "<|endoftext|>", "👩‍👩‍👧"])
    right = st.fixed_dictionaries(
        {"model": st.just("ssmoe/tiny"), "input": text | st.lists(text, min_size=1, max_size=3)},
        optional={"encoding_format": st.sampled_from(["float", "base64"]), "dimensions": st.integers(1, 256)},
    )
    names = st.sampled_from(["model", "input", "encoding_format", "dimensions", "user", "other"])
    changes = st.dictionaries(names, _VALUES | st.lists(st.integers(-9, 60_000), max_size=5), max_size=2)
    body = right | st.tuples(right, changes).map(lambda pair: pair[0] | pair[1])
    encoded = body.map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass"))
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:

        def check(content: bytes) -> None:
            answer = client.post("/v1/embeddings", content=content)
            seen[f"server: {answer.status_code}"] += 1
            assert answer.status_code < 500, answer.text
            found = json.loads(answer.text, parse_constant=_no_constant)
            if answer.status_code == 200:
                assert found["data"]
            else:
                assert found["error"]["message"]

        _run(check, encoded | st.binary(max_size=200) | _VALUES.map(lambda value: json.dumps(value).encode()), cases)
    return seen


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


# --- running ----------------------------------------------------------------------------------------------------------


def _run(check: Callable[[Any], None], inputs: st.SearchStrategy[Any], cases: int) -> None:
    """Try that many inputs; a fault is raised with the smallest input that shows it."""
    chosen = settings(
        max_examples=cases,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    chosen(given(inputs)(check))()


TARGETS: dict[str, tuple[Callable[[int], Outcomes], float]] = {"server": (server, 0.5)}
"""What is tried, and its share of the cases."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, try, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000, help="of all targets together")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    whole = math.fsum(TARGETS[name][1] for name in options.targets)
    for name in options.targets:
        target, share = TARGETS[name]
        for outcome, count in sorted(target(max(1, round(options.cases * share / whole))).items()):
            print(f"{outcome:60s} {count:6d}")


if __name__ == "__main__":
    main()
