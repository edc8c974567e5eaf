# The router's image. The second stage has neither the sources nor the compiler.
#   docker build -t azureml-fe .                                       the router, with its hot path compiled
#   docker build -t azureml-fe --build-arg COMPILE=0 .                 everything interpreted
#   docker build -t azureml-fe --build-arg EXTRAS='[otel]' .           with traces and pushed metrics over OTLP
#   docker build -t azureml-fe --build-arg EXTRAS='[azure-monitor]' .  with Application Insights
#   docker build -t azureml-fe --build-arg EXTRAS='[azure]' .          with collected data in Azure Blob Storage
#   docker build -t azureml-fe --build-arg EXTRAS='[example]' .        with the server for entry scripts
#   docker build -t azureml-fe --build-arg BASE=python@sha256:... .    with a base image that does not change

ARG BASE=python:3.13-slim-bookworm
FROM $BASE AS build
ARG EXTRAS=""
ARG COMPILE=1
# binutils: strip. gcc and libc6-dev: the hot path.
RUN apt-get update \
    && apt-get install -y --no-install-recommends binutils $([ "$COMPILE" != 1 ] || echo gcc libc6-dev) \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY LICENSE pyproject.toml README.md setup.py deploy/image/constraints.txt deploy/image/slim.py ./
COPY router ./router
# The image's pip installs into the environment, which therefore needs no pip. The head of constraints.txt has the command
# that updates the versions. rich needs pygments, a sixth of the environment, only to highlight source code.
RUN python -m venv --without-pip /opt/azureml-fe \
    && COMPILE_AZUREML_FE="$COMPILE" pip --python /opt/azureml-fe/bin/python install --no-cache-dir --constraint constraints.txt ".${EXTRAS}" \
    && pip --python /opt/azureml-fe/bin/python uninstall --yes pygments \
    && python slim.py /opt/azureml-fe

FROM $BASE
# tini reaps the orphans of replicas and passes signals on. Group 0 may write the state, for platforms that run images as
# an arbitrary user of this group.
RUN apt-get update && apt-get install -y --no-install-recommends tini && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /var/lib/azureml-fe --shell /usr/sbin/nologin azureml-fe \
    && install --directory --owner=10001 --group=0 --mode=0770 /var/lib/azureml-fe
COPY --from=build /opt/azureml-fe /opt/azureml-fe
# Write the byte code of all modules that a router imports, the base image's included: user 10001 cannot. Workers and the
# collector run with -O.
RUN cd /opt/azureml-fe/bin \
    && ./python -c "import router.cli.main, router.cli.local, router.cli.serve" \
    && ./python -O -c "import router.workers.main, router.collection.main"
# Nothing outside the container could reach 127.0.0.1.
ENV PATH="/opt/azureml-fe/bin:$PATH" \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    AZUREML_FE_HOST=:: \
    AZUREML_FE_ADMIN_HOST=:: \
    AZUREML_FE_STATE_DIR=/var/lib/azureml-fe
USER 10001:10001
EXPOSE 8080 8443 9090 9091
STOPSIGNAL SIGTERM
# Not urllib, which would use the proxies of the environment.
HEALTHCHECK CMD ["python", "-c", "import http.client as c, os, sys; a = c.HTTPConnection('127.0.0.1', int(os.environ.get('AZUREML_FE_ADMIN_PORT', 9090)), timeout=5); a.request('GET', '/healthz'); sys.exit(a.getresponse().status != 200)"]
ENTRYPOINT ["tini", "--", "azureml-fe"]
CMD ["--help"]
