"""Sentence embeddings from a Mixture-of-Experts language model, offline, in a few lines.

Run it with `python examples/quickstart.py`.
"""

from sentence_transformers import SentenceTransformer

import ssmoe_embed

texts = [
    "How do I undo the last commit?",
    "Take back what was committed most recently.",
    "The cat sleeps on the warm windowsill.",
]

# The model that comes with the package is an ordinary SentenceTransformer.
model: SentenceTransformer = ssmoe_embed.load()
vectors = model.encode(texts)
print(f"{vectors.shape[0]} texts, {vectors.shape[1]} dimensions")
print(model.similarity(vectors, vectors))

# The same model read in other ways: what its routers say, or hidden state and routing joined.
for method in ("router", "moee", "ev", "ssmoe"):
    other = ssmoe_embed.load(method=method)
    similar, different = other.similarity(other.encode(texts[:1]), other.encode(texts[1:]))[0]
    print(f"{method:7} like: {similar:.2f}  unlike: {different:.2f}")
