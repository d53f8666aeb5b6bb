# The environment and the code. Building it needs the network, running it does not.
#
#     docker build -t fsq-mardm .                                       # CPU
#     docker build -t fsq-mardm --build-arg TORCH=locked .              # CUDA: PyPI's build, by hash
#     docker run --rm -v "$PWD/work:/work" fsq-mardm make -C /fsq-mardm demo ARGS="--work_dir /work"
#     docker run --rm --gpus all -v "$PWD/work:/work" -w /work fsq-mardm python /fsq-mardm/sample.py ...
#
# TORCH is the Makefile's. The CUDA libraries come with torch; the host needs the driver and NVIDIA's container
# toolkit. To pin the base image too, give its digest: --build-arg BASE=python:3.11-slim-bookworm@sha256:...
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}

# gcc: triton, with which torch.compile runs on GPUs, calls it
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev make \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /fsq-mardm
ARG TORCH=https://download.pytorch.org/whl/cpu
COPY Makefile requirements.txt ./
COPY locks locks
RUN make install TORCH="${TORCH}" && rm -rf /root/.cache/pip
COPY . .
ENV PATH="/fsq-mardm/.venv/bin:${PATH}"
CMD ["make", "help"]
