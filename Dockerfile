# A server of embeddings and search: docker build -t ssmoe . && docker run -p 8080:8080 ssmoe
FROM python:3.12-slim

WORKDIR /app
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY ssmoe_embed ssmoe_embed
# PyTorch for CPUs; for a GPU leave the index out, and run with --gpus all
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu ".[serve,faiss]"

RUN useradd --create-home ssmoe
USER ssmoe
EXPOSE 8080
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/health')"]
# SSMOE_API_KEY is the key that clients must send; without it whoever reaches the port may ask
ENTRYPOINT ["ssmoe", "serve", "--host", "0.0.0.0"]
