# syntax=docker/dockerfile:1
# Two images from one file: `--target operator` and `--target sidecar`. Neither holds vLLM.
FROM docker.io/library/python:3.11-slim-bookworm AS build
WORKDIR /src
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY requirements/build.lock /tmp/build.lock
RUN python -m venv /build && /build/bin/pip install --no-cache-dir --require-hashes -r /tmp/build.lock
COPY pyproject.toml compile_hot_path.py README.md LICENSE ./
COPY operator operator
COPY serving serving
RUN HATCH_BUILD_HOOK_ENABLE_CUSTOM=1 \
    /build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheels .

FROM build AS operator-env
COPY requirements/operator.lock /tmp/operator.lock
RUN python -m venv /app && /app/bin/pip install --no-cache-dir --require-hashes -r /tmp/operator.lock && \
    /app/bin/pip install --no-cache-dir --no-deps /wheels/*.whl

FROM build AS sidecar-env
COPY requirements/sidecar.lock /tmp/sidecar.lock
RUN python -m venv /app && /app/bin/pip install --no-cache-dir --require-hashes -r /tmp/sidecar.lock && \
    /app/bin/pip install --no-cache-dir --no-deps /wheels/*.whl

FROM docker.io/library/python:3.11-slim-bookworm AS base
# kopf asks for the user's name: an id without a passwd entry would end it.
RUN useradd --uid 65532 --no-create-home --shell /usr/sbin/nologin fairserve
ENV PATH=/app/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 65532

FROM base AS operator
COPY --from=operator-env /app /app
ENTRYPOINT ["python", "-m", "fairserve_operator"]

FROM base AS sidecar
COPY --from=sidecar-env /app /app
EXPOSE 8000 8001
ENTRYPOINT ["fairserve", "sidecar"]
