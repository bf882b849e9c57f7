"""Vectors in Qdrant; `pip install qdrant-client`. Local mode, in memory: no server is needed."""

from qdrant_client import QdrantClient, models

import ssmoe_embed
from ssmoe_embed.data import search_corpus

documents = search_corpus()[:200]
model = ssmoe_embed.load()
vectors = model.encode_document([document.full_text for document in documents])

client = QdrantClient(":memory:")  # or QdrantClient("http://localhost:6333")
client.create_collection("answers", models.VectorParams(size=vectors.shape[1], distance=models.Distance.COSINE))
client.upload_collection("answers", vectors, payload=[{"title": document.title} for document in documents])
query = model.encode_query("how do I undo the last commit")
for hit in client.query_points("answers", query=query.tolist(), limit=3).points:
    print(f"{hit.score:.2f}  {(hit.payload or {})['title']}")
