# CPU:   docker build -t lepmerge .
# CUDA:  docker build -t lepmerge --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
# Run:   docker run --rm -it [--gpus all] -v "$PWD":/work lepmerge chain my-project
FROM python:3.12-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY pyproject.toml README.md LICENSE constraints.txt /src/
RUN pip install --no-cache-dir -c /src/constraints.txt torch --index-url ${TORCH_INDEX}
COPY lepmerge /src/lepmerge
COPY eval /src/eval
RUN pip install --no-cache-dir -c /src/constraints.txt "/src[data,eval,gguf,lora,plots]" && rm -rf /src
WORKDIR /work
ENTRYPOINT ["lepmerge"]
CMD ["--help"]
