# halfstep with every extra:
#   docker build -t halfstep .
#   docker run --rm -v "$PWD:/data" halfstep demo
# torch is the build of pip's own index, with CUDA. --build-arg TORCH_INDEX=URL takes another, such as the smaller CPU
# builds whose index PyTorch's installation page names. With a GPU: docker run --gpus all
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
ARG TORCH_INDEX=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/halfstep
WORKDIR /src
COPY constraints.txt ./
RUN /opt/halfstep/bin/pip install -c constraints.txt ${TORCH_INDEX:+--extra-index-url ${TORCH_INDEX}} torch
COPY pyproject.toml README.md LICENSE THIRD_PARTY.md ./
COPY halfstep ./halfstep
RUN /opt/halfstep/bin/pip install -c constraints.txt '.[all]'

FROM python:${PYTHON}-slim
RUN useradd --create-home --uid 1000 halfstep && mkdir /data && chown halfstep /data
COPY --from=build /opt/halfstep /opt/halfstep
ENV PATH=/opt/halfstep/bin:$PATH
USER halfstep
WORKDIR /data
ENTRYPOINT ["halfstep"]
CMD ["--help"]
