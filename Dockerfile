# Two images from one file: `--target operator` and `--target sidecar` (`make images`). Neither holds vLLM.
# Whoever wants the very same base every time gives it by digest: --build-arg PYTHON=docker.io/library/python@sha256:…
ARG PYTHON=docker.io/library/python:3.11-slim-bookworm
# The same Python with a C compiler and its headers.
ARG PYTHON_BUILD=docker.io/library/python:3.11-bookworm

FROM ${PYTHON_BUILD} AS tools
WORKDIR /src
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
COPY requirements/build.lock /tmp/build.lock
RUN python -m venv /build && /build/bin/pip install --require-hashes -r /tmp/build.lock

# What is locked comes before our own code, so that a change of that installs nothing anew. The environments have no
# pip; their bytecode is compiled here, since nothing can be written where they run, and holds no times.
# Half of the library `kubernetes` is a second copy of it, for asyncio, which nobody here imports.
FROM tools AS operator-env
COPY requirements/operator.lock /tmp/operator.lock
RUN python -m venv --without-pip /app && \
    /build/bin/pip --python /app/bin/python install --no-compile --require-hashes -r /tmp/operator.lock && \
    rm -r /app/lib/python3*/site-packages/kubernetes/aio && \
    /app/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /app/lib

FROM tools AS sidecar-env
COPY requirements/sidecar.lock /tmp/sidecar.lock
RUN python -m venv --without-pip /app && \
    /build/bin/pip --python /app/bin/python install --no-compile --require-hashes -r /tmp/sidecar.lock && \
    /app/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /app/lib

# mypyc reads the types of what the sidecar imports.
FROM tools AS wheel
COPY requirements/sidecar.lock /tmp/sidecar.lock
RUN /build/bin/pip install --require-hashes -r /tmp/sidecar.lock
COPY pyproject.toml compile_hot_path.py README.md LICENSE ./
COPY operator operator
COPY serving serving
RUN HATCH_BUILD_HOOK_ENABLE_CUSTOM=1 /build/bin/python -m hatchling build -t wheel -d /wheels

FROM operator-env AS operator-app
COPY --from=wheel /wheels /wheels
RUN /build/bin/pip --python /app/bin/python install --no-compile --no-index --no-deps /wheels/*.whl && \
    /app/bin/python -m compileall -q --invalidation-mode unchecked-hash /app/lib/python3*/site-packages/fairserve*

FROM sidecar-env AS sidecar-app
COPY --from=wheel /wheels /wheels
RUN /build/bin/pip --python /app/bin/python install --no-compile --no-index --no-deps /wheels/*.whl && \
    /app/bin/python -m compileall -q --invalidation-mode unchecked-hash /app/lib/python3*/site-packages/fairserve*

FROM ${PYTHON} AS base
# kopf asks for the user's name: an id without a passwd entry would end it.
RUN groupadd --gid 65532 fairserve && \
    useradd --uid 65532 --gid 65532 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin fairserve
ENV PATH=/app/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# By number: a kubelet that wants `runAsNonRoot` can't look up a name.
USER 65532:65532

FROM base AS operator
COPY --from=operator-app /app /app
EXPOSE 8080
ENTRYPOINT ["python", "-m", "fairserve_operator"]
ARG VERSION=0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="fairserve-operator" \
      org.opencontainers.image.description="Compiles Tenants, Applications and ServingPools and configures the sidecars." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

FROM base AS sidecar
COPY --from=sidecar-app /app /app
EXPOSE 8000 8001
ENTRYPOINT ["fairserve", "sidecar"]
ARG VERSION=0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="fairserve-sidecar" \
      org.opencontainers.image.description="Queues, orders, throttles and accounts for the calls of one vLLM." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
