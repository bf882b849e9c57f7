# A server of embeddings and search: docker build -t ssmoe . && docker run -p 8080:8080 ssmoe
ARG PYTHON=3.12
FROM python:${PYTHON}-slim

WORKDIR /app
# PyTorch for CPUs, without the gigabytes of CUDA; for a GPU: --build-arg TORCH_INDEX=https://pypi.org/simple, and run with --gpus all
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" torch
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY ssmoe_embed ssmoe_embed
RUN pip install --no-cache-dir ".[serve,faiss]"

RUN useradd --create-home ssmoe
USER ssmoe
EXPOSE 8080
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/health')"]
# SSMOE_API_KEY is the key that clients must send; without it whoever reaches the port may ask
ENTRYPOINT ["ssmoe", "serve", "--host", "0.0.0.0"]
