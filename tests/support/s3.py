"""A real S3 endpoint for the tests, in a process of its own, and the fixtures that hand it out.

The server is moto's, with one lock around each request: its check-then-set of `If-None-Match` is not atomic
otherwise, and the stores under test depend on exactly that. It ends with the process that started it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import urllib.request
import uuid
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pkm_pipelines.storage.location import Location

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

ROOT = Path(__file__).resolve().parents[2]
REGION = "us-east-1"


@dataclass(frozen=True)
class S3Endpoint:
    """A running endpoint; `environment` holds the `AWS_*` variables that reach it."""

    url: str

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test-secret",
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ENDPOINT_URL": self.url,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def bucket(self) -> str:
        """Make an empty bucket with a name that no other test has."""
        name = f"pkm-{uuid.uuid4().hex[:16]}"
        # The URL is the local server's own.
        request = urllib.request.Request(f"{self.url}/{name}", method="PUT")
        with urllib.request.urlopen(request, timeout=30):
            return name

    def location(self) -> Location:
        """An empty place below a prefix of a new bucket."""
        return Location(f"s3://{self.bucket()}/some/lake")


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[S3Endpoint]:
    """The session's S3 endpoint; the `AWS_*` variables point to it from here on."""
    with start_server() as endpoint, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in endpoint.environment.items():
            patch.setenv(name, value)
        yield endpoint


@pytest.fixture(params=["local", "s3"])
def store_location(request: pytest.FixtureRequest) -> Location:
    """A fresh, empty place for a store: once on local disk and once on S3."""
    if request.param == "local":
        work: Path = request.getfixturevalue("work")
        return Location((work / "store").as_uri())
    endpoint: S3Endpoint = request.getfixturevalue("s3_endpoint")
    return endpoint.location()


@contextlib.contextmanager
def start_server(*options: str) -> Generator[S3Endpoint]:
    """Start a server process, wait until it listens, and end it on the way out.

    `--ignore-conditions` makes one of those that drop If-None-Match without a word.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, *options],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline().decode().strip()
        if not line:
            raise RuntimeError(f"the S3 server of the tests did not start (exit code {process.wait()})")
        yield S3Endpoint(line)
    finally:
        process.kill()
        process.communicate()


def main() -> None:
    """Serve on a free port, print the URL, and go when standard input closes."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class QuietHandler(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_request(self, *args: object, **kwargs: object) -> None:
            pass

    application, lock = DomainDispatcherApplication(create_backend_app), threading.Lock()

    def one_at_a_time(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if "--ignore-conditions" in sys.argv:
            environ.pop("HTTP_IF_NONE_MATCH", None)
        with lock:
            return list(application(environ, start_response))

    server = make_server("127.0.0.1", 0, one_at_a_time, threaded=True, request_handler=QuietHandler)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    main()
