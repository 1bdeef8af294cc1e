# Two images: `api`, without torch, for api, sweeper and migrate; `worker`, on CUDA, for worker and prepare.
#
#     docker build --target api -t finetuned-api .
#     docker build --target worker -t finetuned-worker .
#
# What is done here to the app is a target of the Makefile, so that it can be tried without Docker.

# The newest Python that Ubuntu 24.04 has, which the CUDA images stand on: one version for both images.
FROM python:3.12-slim-trixie AS api-build
RUN apt-get update && apt-get install -y --no-install-recommends make && rm -rf /var/lib/apt/lists/*
WORKDIR /build
# First what the app depends on: that layer is made again only when one of these three files changes.
COPY Makefile pyproject.toml constraints.txt ./
RUN make install-api VENV=/opt/finetuned
COPY . .
RUN make install-code VENV=/opt/finetuned


FROM python:3.12-slim-trixie AS api
# The same number in both images, since they share volumes. A new volume takes over the owner of these folders.
RUN useradd --uid 10001 --create-home finetuned \
    && install -d -o finetuned -g finetuned /var/lib/finetuned /var/lib/finetuned/storage /var/lib/finetuned/models
COPY --from=api-build /opt/finetuned /opt/finetuned
ENV PATH=/opt/finetuned/bin:$PATH \
    FINETUNED_HOME=/var/lib/finetuned
USER 10001
WORKDIR /var/lib/finetuned
ENTRYPOINT ["finetuned"]
CMD ["--help"]


# The CUDA that torch 2.13 on PyPI is built with. flash-attn must be compiled by the same major version.
FROM nvidia/cuda:13.0.2-devel-ubuntu24.04 AS worker-build
RUN apt-get update \
    && apt-get install -y --no-install-recommends make python3.12-dev python3.12-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY Makefile pyproject.toml constraints.txt ./
RUN make install-worker VENV=/opt/finetuned PYTHON=python3.12
# Compiling takes an hour or more where flash-attn publishes no wheel for this torch; each job wants some 10 GB of memory.
# The architectures: 80 is A100 and all of Ampere and Ada, 90 H100, 100 B200, 120 RTX 50.
ARG MAX_JOBS=4
ARG FLASH_ATTN_CUDA_ARCHS="80;90;100;120"
RUN make install-gpu VENV=/opt/finetuned
COPY . .
RUN make install-code VENV=/opt/finetuned


# `base`, for torch brings its own CUDA libraries. Triton compiles a kernel at its first use: hence gcc and the headers.
FROM nvidia/cuda:13.0.2-base-ubuntu24.04 AS worker
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev python3.12-dev \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 10001 --create-home finetuned \
    && install -d -o finetuned -g finetuned /var/lib/finetuned /var/lib/finetuned/storage /var/lib/finetuned/models
COPY --from=worker-build /opt/finetuned /opt/finetuned
# What preparing fetches from the hub, training reads offline: the cache lies in the home, which the two share.
ENV PATH=/opt/finetuned/bin:$PATH \
    FINETUNED_HOME=/var/lib/finetuned \
    HF_HOME=/var/lib/finetuned/huggingface
USER 10001
WORKDIR /var/lib/finetuned
ENTRYPOINT ["finetuned"]
CMD ["worker"]
