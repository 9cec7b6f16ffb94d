# A server of one model: docker run -p 127.0.0.1:8000:8000 -v $PWD/runs/first:/model:ro binseg-serve
FROM python:3.12-slim AS build
WORKDIR /source
RUN python -m venv /venv
# torch's CPU build, without gigabytes of CUDA
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY constraints.txt ./
# Versions are pinned, files by hash aren't: SECURITY.md says why.
RUN /venv/bin/pip install --no-cache-dir --index-url ${TORCH_INDEX} "torch>=2.13,<2.14"
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN /venv/bin/pip install --no-cache-dir -c constraints.txt ".[serve]"

FROM python:3.12-slim
RUN useradd --system --uid 10001 --no-create-home binseg \
 && mkdir /state /model && chown binseg /state
COPY --from=build /venv /venv
USER binseg
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 BINSEG_CACHE=/state/cache
VOLUME /state
EXPOSE 8000
# Docker's port lets other machines in: publish it on 127.0.0.1, or give BINSEG_TOKEN (16 characters
# or more). Without a token it answers to addresses and localhost; --allow-host adds a name.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["binseg", "serve", "--host", "0.0.0.0", "--port", "8000", "--state", "/state/jobs"]
CMD ["/model"]
