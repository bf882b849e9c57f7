"""LangChain; `pip install langchain-huggingface`."""

from langchain_core.vectorstores import InMemoryVectorStore
from langchain_huggingface import HuggingFaceEmbeddings

import ssmoe_embed  # makes the module known to sentence-transformers
from ssmoe_embed.data import search_corpus, tiny_folder

embeddings = HuggingFaceEmbeddings(model_name=str(tiny_folder()))  # or "ssmoe/olmoe-7b", your own folder, a hub id
store = InMemoryVectorStore(embeddings)
documents = search_corpus()[:200]
store.add_texts([document.full_text for document in documents], [{"title": document.title} for document in documents])
for hit, score in store.similarity_search_with_score("how do I undo the last commit", k=3):
    print(f"{score:.2f}  {hit.metadata['title']}")
print(f"ssmoe_embed {ssmoe_embed.__version__}")
