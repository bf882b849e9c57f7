"""The tasks that ship with the package."""

from ssmoe_embed.data import read_records, search_corpus
from ssmoe_embed.evaluation.offline.classification import ClassificationTask, ClusteringTask
from ssmoe_embed.evaluation.offline.pairs import PairClassificationTask, SimilarityTask
from ssmoe_embed.evaluation.offline.retrieval import RetrievalTask
from ssmoe_embed.evaluation.offline.task import OfflineTask


def offline_tasks() -> list[OfflineTask]:
    """All shipped tasks, in the order of a table's columns.

    All but the last are made from WordNet entries that the embedded model's training never saw. The documents of
    ``howto_search`` are those of the search corpus: its hand-written answers and all its questions are unseen too,
    while its sections of manuals may have been among the training texts.
    """
    return [
        *(_retrieval(name) for name in ("definition_to_example", "related_definition", "reverse_dictionary")),
        PairClassificationTask.from_records("paraphrase_pairs", read_records("offline/paraphrase_pairs.jsonl")),
        SimilarityTask.from_records("similarity", read_records("offline/similarity.jsonl")),
        ClassificationTask.from_records("classification", read_records("offline/lexicographer.jsonl")),
        ClusteringTask.from_records("clustering", read_records("offline/lexicographer.jsonl")),
        howto_search(),
    ]


def howto_search() -> RetrievalTask:
    """Questions in a person's own words, to be answered from the search corpus."""
    documents = [{"id": document.id, "document": document.full_text} for document in search_corpus()]
    return RetrievalTask.from_records("howto_search", [*documents, *read_records("offline/howto_search.jsonl")])


def _retrieval(name: str) -> RetrievalTask:
    return RetrievalTask.from_records(name, read_records(f"offline/{name}.jsonl"))
