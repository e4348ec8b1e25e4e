# The product in an image: docker compose uses it, and so may you:
#
#   docker build -t noosphere . && docker run -p 8000:8000 -v noosphere:/data noosphere
#
# Sandboxes need namespaces, which Docker denies by default; run so, they are refused with a
# message. docker-compose.yml shows the options that permit them to this user, who is not root.

FROM python:3.13-slim AS environment
WORKDIR /srv
COPY requirements.lock .
# Outside of /usr, so that sandboxes, which see /usr, have a Python without our libraries.
RUN python -m venv environment \
    && environment/bin/python -m pip install --quiet --no-cache-dir --disable-pip-version-check \
        --require-hashes -r requirements.lock

FROM python:3.13-slim
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /data --shell /usr/sbin/nologin \
        noosphere \
    && install --directory --owner noosphere --group noosphere --mode 0700 /data
COPY --from=environment /srv/environment /srv/environment
WORKDIR /srv/noosphere
COPY . .
# Compiled now, because the user who runs it may not write here.
RUN /srv/environment/bin/python -m compileall -q .

ENV PATH=/srv/environment/bin:$PATH \
    PYTHONPATH=/srv/noosphere \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    NOOSPHERE_HOST=0.0.0.0 \
    NOOSPHERE_PORT=8000 \
    NOOSPHERE_DATA_DIR=/data
VOLUME /data
EXPOSE 8000
USER 10001:10001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=5s --start-period=30s --retries=6 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:%s/readyz' % os.environ['NOOSPHERE_PORT'], timeout=4)"]
CMD ["python", "-m", "app", "serve"]
