# syntax=docker/dockerfile:1
# calibatt in a container: a stage that builds, and one that has only what runs. Same commands as on a machine of one's own.
#   docker build --target cpu  -t calibatt .        docker run --rm -v "$PWD:/work" calibatt generate --prompt "a red circle moves to the right" -o circle.mp4
#   docker build --target cuda -t calibatt:cuda .   docker run --rm --gpus all -v "$PWD:/work" calibatt:cuda generate …
# The shipped model lies in /opt/calibatt/models/tiny-wan; name it, or your own below /work, with --model.
ARG CPU_IMAGE=debian:12-slim
ARG CUDA_VERSION=13.0.1
ARG CUDA_SYSTEM=ubuntu24.04

FROM ${CPU_IMAGE} AS build-cpu
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends make ca-certificates
WORKDIR /calibatt
COPY . .
RUN make install PREFIX=/opt/calibatt && tools/runtime_packages.sh /opt/calibatt/lib > /opt/calibatt/packages

FROM ${CPU_IMAGE} AS cpu
COPY --from=build-cpu /opt/calibatt /opt/calibatt
COPY models /opt/calibatt/models
RUN apt-get update -qq && xargs apt-get install -y -qq --no-install-recommends < /opt/calibatt/packages && rm -rf /var/lib/apt/lists/*
ENV PATH=/opt/calibatt/bin:$PATH
WORKDIR /work
ENTRYPOINT ["/opt/calibatt/bin/calibatt"]

FROM nvidia/cuda:${CUDA_VERSION}-cudnn-devel-${CUDA_SYSTEM} AS build-cuda
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends make ca-certificates
WORKDIR /calibatt
COPY . .
RUN make PRESET=cuda install PREFIX=/opt/calibatt && tools/runtime_packages.sh /opt/calibatt/lib > /opt/calibatt/packages

FROM nvidia/cuda:${CUDA_VERSION}-cudnn-runtime-${CUDA_SYSTEM} AS cuda
COPY --from=build-cuda /opt/calibatt /opt/calibatt
COPY models /opt/calibatt/models
RUN apt-get update -qq && xargs apt-get install -y -qq --no-install-recommends < /opt/calibatt/packages && rm -rf /var/lib/apt/lists/*
ENV PATH=/opt/calibatt/bin:$PATH
WORKDIR /work
ENTRYPOINT ["/opt/calibatt/bin/calibatt"]
