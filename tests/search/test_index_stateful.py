"""Any sequence of changes, interruptions and reopenings equals a dictionary and a sort."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from indexing import static_model, vectors

from ssmoe_embed.search import Document, IndexKind, SemanticIndex

IDS = st.sampled_from("abcdefgh")
DOCUMENTS = st.lists(
    st.builds(
        lambda name, text, number, title: Document(name, f"text {text}", {"n": number}, title),
        IDS,
        st.integers(0, 5),
        st.integers(0, 1),
        st.sampled_from([None, "T"]),
    ),
    max_size=6,
)
MODEL = static_model()
QUERY = np.random.default_rng(7).standard_normal(24)


class InterruptedAddError(Exception):
    """What stops an add in the middle."""


class IndexMachine(RuleBasedStateMachine):
    """The index beside a dictionary."""

    @initialize(kind=st.sampled_from(["flat", "sq8", "hnsw"]))
    def create(self, kind):
        self.folder = Path(tempfile.mkdtemp())
        self.index = SemanticIndex.create(self.folder / "i", MODEL, kind=kind)
        self.truth = {}

    def teardown(self):
        shutil.rmtree(self.folder)

    @rule(documents=DOCUMENTS)
    def add(self, documents):
        counts = self.index.add_vectors(documents, vectors(documents) if documents else [])
        expected = {"added": 0, "updated": 0, "unchanged": 0}
        for document in documents:
            there = self.truth.get(document.id)
            expected["added" if there is None else "unchanged" if there == document else "updated"] += 1
            self.truth[document.id] = document
        assert {name: getattr(counts, name) for name in expected} == expected

    @rule(documents=DOCUMENTS)
    def interrupt(self, documents):
        def stopped():
            yield from (vectors(documents) if documents else [])
            raise InterruptedAddError

        try:
            self.index.add_vectors([*documents, Document("z", "never seen")], stopped())
        except InterruptedAddError:
            return
        raise AssertionError("it was not interrupted")

    @rule(ids=st.lists(IDS, max_size=4))
    def delete(self, ids):
        assert self.index.delete(ids) == len(set(ids) & self.truth.keys())
        for name in ids:
            self.truth.pop(name, None)

    @rule(kind=st.sampled_from([None, *IndexKind]))
    def rebuild(self, kind):
        self.index.rebuild(kind=kind, progress=False)

    @rule()
    def reopen(self):
        self.index = SemanticIndex.open(self.index.folder)

    @invariant()
    def equals_the_dictionary(self):
        assert len(self.index) == len(self.truth)
        assert {d.id: d for d in self.index.documents()} == self.truth
        for filters in (None, {"n": 1}):
            if filters and not self.truth:
                continue
            wanted = [d for d in self.truth.values() if not filters or d.metadata["n"] == 1]
            if filters and "n" not in self.index.filter_keys():
                continue
            [hits] = self.index.search_vectors(QUERY, 20, filters=filters)
            assert sorted(hit.document.id for hit in hits) == sorted(d.id for d in wanted)
            if wanted:
                made = vectors(wanted)
                scores = made @ QUERY / np.linalg.norm(made, axis=1) / np.linalg.norm(QUERY)
                np.testing.assert_allclose([hit.score for hit in hits], np.sort(scores)[::-1], atol=1e-6)


TestIndex = IndexMachine.TestCase
TestIndex.settings = settings(
    max_examples=12, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
