"""LlamaIndex; `pip install llama-index-core llama-index-embeddings-huggingface`."""

from llama_index.core import Document, VectorStoreIndex
from llama_index.embeddings.huggingface import HuggingFaceEmbedding

import ssmoe_embed  # makes the module known to sentence-transformers
from ssmoe_embed.data import search_corpus, tiny_folder

embedding = HuggingFaceEmbedding(model_name=str(tiny_folder()))  # or "ssmoe/olmoe-7b", your own folder, a hub id
documents = [Document(text=one.full_text, metadata={"title": one.title}) for one in search_corpus()[:200]]
index = VectorStoreIndex.from_documents(documents, embed_model=embedding)
for hit in index.as_retriever(similarity_top_k=3).retrieve("how do I undo the last commit"):
    print(f"{hit.score:.2f}  {hit.metadata['title']}")
print(f"ssmoe_embed {ssmoe_embed.__version__}")
