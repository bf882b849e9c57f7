"""A local server: embeddings in the OpenAI format, semantic search, and a web page; needs the extra `serve`."""
