# syntax=docker/dockerfile:1.7
# The image that the head, the workers and the submitter of a run share. Its CUDA libraries are those of torch's wheel, so
# the base brings no more than the CUDA runtime and NVIDIA's variables; the driver is mounted by the node.
#
#   docker build --build-arg REVISION=$(git rev-parse HEAD) --tag registry.example/interp:0.1.0 .
#   without GPUs: --build-arg BASE=debian:12.12-slim --build-arg PIP_EXTRA_INDEX_URL=<PyTorch's index of CPU wheels>

# Another base must have glibc 2.36 or newer, which Python below is linked with: Ubuntu 24.04 and Debian 12 have it.
ARG PYTHON=python:3.11.14-slim-bookworm
ARG BASE=nvidia/cuda:13.0.2-base-ubuntu24.04

FROM ${PYTHON} AS build
ARG PIP_EXTRA_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    TRITON_PREBUILT_DIR=/opt/triton
# Without versions: the archive of a release keeps the newest only, and the base's tag says which release it is.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build

# The locks constrain: the first also holds what tests and checks, the second what only torch's CUDA build needs.
COPY pyproject.toml requirements.lock requirements-cuda.lock ./
RUN python3.11 -m venv /opt/interp \
    && python3.11 -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > runtime.txt \
    && /opt/interp/bin/pip install --constraint requirements.lock --constraint requirements-cuda.lock \
        --requirement runtime.txt setuptools

# Triton compiles one C file on the machine where it runs. Here that is done beforehand: see the script.
COPY tools/prebuilt_triton.py /opt/interp/lib/python3.11/site-packages/
RUN mkdir -p /opt/triton && /opt/interp/bin/python -m prebuilt_triton

COPY README.md ./
COPY interp ./interp
COPY ray_jobs ./ray_jobs
RUN /opt/interp/bin/pip wheel --no-deps --no-build-isolation --wheel-dir wheels . \
    && /opt/interp/bin/pip install --no-deps wheels/*.whl \
    && /opt/interp/bin/pip check


FROM ${BASE} AS runtime
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG SOURCE=unknown
ARG LICENSES=NOASSERTION
LABEL org.opencontainers.image.title="interp" \
      org.opencontainers.image.description="Mechanistic interpretability as batch jobs: the image of Ray's head and workers" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.licenses="${LICENSES}"

# bash runs every command that KubeRay writes. wget is what its probes run where a RayCluster names no rayVersion, or one
# before 2.53 (else they are HTTP requests of the kubelet). The libraries are those of Python's standard library.
# Ubuntu's image has a user 1000 of its own, which makes place.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        bash ca-certificates libbz2-1.0 libexpat1 libffi8 liblzma5 libncursesw6 libreadline8 libsqlite3-0 libssl3 \
        libuuid1 wget zlib1g \
    && rm -rf /var/lib/apt/lists/* \
    && if getent passwd 1000; then userdel --remove "$(id --user --name 1000)"; fi \
    && useradd --uid 1000 --user-group --create-home --shell /bin/bash interp \
    && install -d -o 1000 -g 1000 /cache

COPY --from=build /usr/local/bin/python3.11 /usr/local/bin/python3.11
COPY --from=build /usr/local/lib/libpython3.11.so.1.0 /usr/local/lib/libpython3.11.so.1.0
COPY --from=build /usr/local/lib/python3.11 /usr/local/lib/python3.11
COPY --from=build /opt/interp /opt/interp
COPY --from=build /opt/triton /opt/triton

ENV PATH=/opt/interp/bin:${PATH} \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/cache/huggingface \
    INTERP_CACHE_DIR=/cache \
    TRITON_PREBUILT_DIR=/opt/triton \
    TRITON_CACHE_MANAGER=prebuilt_triton:Prebuilt \
    RAY_USAGE_STATS_ENABLED=0
# What a base lacks is told here, not on a cluster.
RUN ldconfig \
    && python -c "import bz2, ctypes, lzma, readline, sqlite3, ssl, uuid, zlib, ray, torch, interp, ray_jobs" \
    && python -m prebuilt_triton --check

# By number, so that Kubernetes can see that it is not root. interp and ray_jobs are installed: any folder will do.
USER 1000:1000
WORKDIR /home/interp
# For docker and compose. Kubernetes ignores it; there KubeRay's probes ask Ray itself.
HEALTHCHECK --interval=60s --timeout=20s --start-period=60s --retries=3 CMD ["python", "-c", "import interp"]
CMD ["interp", "--help"]
