# Two images. docs/container.md says how to run them.
#   docker build -t fastgen .                       the client, for servers that run elsewhere (and the CPU server)
#   docker build -t fastgen:gpu --target gpu .      the same on top of vLLM, for the GPUs of one machine

ARG PYTHON_IMAGE=python:3.12-slim-bookworm
ARG VLLM_IMAGE=vllm/vllm-openai:v0.32.0

# -- the wheel ---------------------------------------------------------------------------------------------------------

FROM ${PYTHON_IMAGE} AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY fastgen ./fastgen
COPY seeds ./seeds
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

# -- on vLLM's own image -----------------------------------------------------------------------------------------------

FROM ${VLLM_IMAGE} AS gpu
COPY --from=wheel /wheels /wheels
# An environment that sees vLLM's packages and changes none of them.
RUN python3 -m venv --system-site-packages /opt/fastgen \
    && /opt/fastgen/bin/python -m pip install --no-cache-dir /wheels/*.whl \
    && rm -r /wheels
RUN mkdir -p /work/runs /cache && chmod 1777 /work /work/runs /cache
ENV PATH=/opt/fastgen/bin:$PATH HOME=/cache XDG_CACHE_HOME=/cache HF_HOME=/cache/huggingface \
    USER=fastgen LOGNAME=fastgen PYTHONUNBUFFERED=1
WORKDIR /work
VOLUME ["/work/runs", "/cache"]
USER 1000:1000
STOPSIGNAL SIGINT
ENTRYPOINT ["fastgen"]
CMD ["--help"]

# -- without a GPU, the default ----------------------------------------------------------------------------------------

FROM ${PYTHON_IMAGE} AS cpu
COPY --from=wheel /wheels /wheels
# The wheel's path with its extras: what is written as Parquet, and the upload to the hub.
RUN python -m venv /opt/fastgen \
    && /opt/fastgen/bin/python -m pip install --no-cache-dir "$(echo /wheels/*.whl)[parquet,hub]" \
    && rm -r /wheels
# Any user may write there, so that --user fits the owner of a mounted folder.
RUN mkdir -p /work/runs /cache && chmod 1777 /work /work/runs /cache
ENV PATH=/opt/fastgen/bin:$PATH HOME=/cache XDG_CACHE_HOME=/cache HF_HOME=/cache/huggingface \
    USER=fastgen LOGNAME=fastgen PYTHONUNBUFFERED=1
WORKDIR /work
VOLUME ["/work/runs", "/cache"]
USER 1000:1000
STOPSIGNAL SIGINT
ENTRYPOINT ["fastgen"]
CMD ["--help"]
