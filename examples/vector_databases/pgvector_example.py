"""Vectors in PostgreSQL with pgvector; `pip install 'psycopg[binary]' pgvector`.

Name the database in `PGVECTOR_DSN`, such as `postgresql://localhost/test`.
"""

import os

import psycopg
from pgvector.psycopg import register_vector

import ssmoe_embed
from ssmoe_embed.data import search_corpus

documents = search_corpus()[:200]
model = ssmoe_embed.load()
vectors = model.encode_document([document.full_text for document in documents])

with psycopg.connect(os.environ.get("PGVECTOR_DSN", "")) as connection:
    connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
    register_vector(connection)
    connection.execute(f"CREATE TEMP TABLE answers (title text, embedding vector({vectors.shape[1]}))")
    rows = [(document.title, vector) for document, vector in zip(documents, vectors, strict=True)]
    connection.cursor().executemany("INSERT INTO answers VALUES (%s, %s)", rows)
    query = model.encode_query("how do I undo the last commit")
    nearest = "SELECT 1 - (embedding <=> %s) AS score, title FROM answers ORDER BY embedding <=> %s LIMIT 3"
    for score, title in connection.execute(nearest, (query, query)):
        print(f"{score:.2f}  {title}")
