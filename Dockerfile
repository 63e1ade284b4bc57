# The service as an image. BASE has Python 3.11 or newer with its venv module; name it by digest in a release:
#   docker build --build-arg BASE=docker.io/library/python:3.13-slim-bookworm@sha256:… -t registry-proxy .
# RUNTIME is the root of the result: BASE, or a smaller one that has the same Python in the same place, and needs no shell.
# Without network: the wheels of requirements.lock in wheels/ (pip download), and --build-arg PIP_NO_INDEX=1.
ARG BASE=docker.io/library/python:3.13-slim-bookworm
ARG RUNTIME=${BASE}

FROM ${BASE} AS build
ARG PIP_NO_INDEX
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_FIND_LINKS=/build/wheels PIP_NO_CACHE_DIR=1
COPY requirements.lock wheels* /build/wheels/
RUN python3 -m venv /opt/registry-proxy && mkdir /build/empty \
    && /opt/registry-proxy/bin/pip install --no-deps --require-hashes -r /build/wheels/requirements.lock
COPY LICENSE README.md pyproject.toml /build/source/
COPY registry_proxy /build/source/registry_proxy
RUN /opt/registry-proxy/bin/pip install --no-deps --no-build-isolation /build/source \
    && /opt/registry-proxy/bin/pip uninstall -q -y setuptools pip

FROM ${RUNTIME}
ARG BASE
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="registry-proxy" \
      org.opencontainers.image.description="A caching, permission-checking, failing-over proxy in front of Docker and OCI registries" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${BASE}"
COPY --from=build /opt/registry-proxy /opt/registry-proxy
COPY --from=build --chown=10001:10001 /build/empty /var/lib/registry-proxy
COPY --from=build --chown=10001:10001 /build/empty /var/cache/registry-proxy
COPY --from=build --chown=10001:10001 /build/empty /var/log/registry-proxy
COPY packaging/container/config.yaml /etc/registry-proxy/config.yaml
ENV PATH=/opt/registry-proxy/bin:/usr/local/bin:/usr/bin:/bin HOME=/var/lib/registry-proxy PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
WORKDIR /var/lib/registry-proxy
VOLUME ["/var/lib/registry-proxy", "/var/cache/registry-proxy", "/var/log/registry-proxy"]
EXPOSE 5000 5080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["/opt/registry-proxy/bin/python", "-Ic", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:5080/healthz', timeout=4)"]
ENTRYPOINT ["/opt/registry-proxy/bin/registry-proxy"]
CMD ["serve", "--config", "/etc/registry-proxy/config.yaml"]
