# The application as a container image. It is not built by this project's CI, where no container engine runs.
#
#   docker build -t pkm-pipelines .
#   docker run --rm -v ~/notes:/notes:ro -v lake:/lake pkm-pipelines init /notes
#   docker run --rm -v ~/notes:/notes:ro -v lake:/lake pkm-pipelines run
#   docker run --rm -v ~/notes:/notes:ro -v lake:/lake -p 127.0.0.1:3000:3000 pkm-pipelines dev --host 0.0.0.0
#
# The UI asks for no password: publish its port on 127.0.0.1, or behind something that asks.
FROM python:3.11-slim

WORKDIR /app
# The dependencies alone first: this layer stays while only code changes.
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY pkm_pipelines/__init__.py pkm_pipelines/
COPY assets/__init__.py assets/
COPY resources/__init__.py resources/
COPY schedules/__init__.py schedules/
# A build of PyTorch for the CPU; without it pip takes one with several GB of CUDA.
RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu torch==2.13.0 \
    && pip install --no-cache-dir -e . -c constraints.txt
COPY . .

RUN useradd --create-home pkm && mkdir /lake && chown pkm /lake
USER pkm
WORKDIR /lake
VOLUME /lake
ENTRYPOINT ["pkm"]
CMD ["--help"]
