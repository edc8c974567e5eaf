# The router as an image: built in one stage, run in another that has neither pip's downloads nor the sources.
#   docker build -t azureml-fe .                                       the router alone, its hot path compiled
#   docker build -t azureml-fe --build-arg COMPILE=0 .                 all of it interpreted
#   docker build -t azureml-fe --build-arg EXTRAS='[otel]' .           with traces by OTLP
#   docker build -t azureml-fe --build-arg EXTRAS='[example]' .        with what runs entry scripts

FROM python:3.13-slim-bookworm AS build
ARG EXTRAS=""
ARG COMPILE=1
RUN if [ "$COMPILE" = 1 ]; then \
        apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*; \
    fi
WORKDIR /src
COPY pyproject.toml README.md setup.py ./
COPY router ./router
# The environment needs no pip of its own: the image's installs into it.
RUN python -m venv --without-pip /opt/azureml-fe \
    && COMPILE_AZUREML_FE="$COMPILE" pip --python /opt/azureml-fe/bin/python install --no-cache-dir ".${EXTRAS}"

FROM python:3.13-slim-bookworm
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /var/lib/azureml-fe --shell /usr/sbin/nologin azureml-fe \
    && install --directory --owner=10001 --group=10001 --mode=0700 /var/lib/azureml-fe
COPY --from=build /opt/azureml-fe /opt/azureml-fe
# In a container 127.0.0.1 would be reachable by nobody.
ENV PATH="/opt/azureml-fe/bin:$PATH" \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    AZUREML_FE_HOST=0.0.0.0 \
    AZUREML_FE_ADMIN_HOST=0.0.0.0 \
    AZUREML_FE_STATE_DIR=/var/lib/azureml-fe
USER 10001:10001
WORKDIR /var/lib/azureml-fe
EXPOSE 8080 8443 9090 9091
STOPSIGNAL SIGTERM
ENTRYPOINT ["azureml-fe"]
CMD ["--help"]
