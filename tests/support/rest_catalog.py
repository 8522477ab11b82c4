"""A REST catalog for the tests: the part of Iceberg's REST specification that pyiceberg uses, over a SQL catalog."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import (
    CommitFailedException,
    NamespaceAlreadyExistsError,
    NoSuchNamespaceError,
    NoSuchTableError,
    TableAlreadyExistsError,
)
from pyiceberg.partitioning import PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table import CommitTableRequest, Table
from pyiceberg.table.sorting import SortOrder

_STATUS = {
    NoSuchTableError: (404, "NoSuchTableException"),
    NoSuchNamespaceError: (404, "NoSuchNamespaceException"),
    TableAlreadyExistsError: (409, "AlreadyExistsException"),
    NamespaceAlreadyExistsError: (409, "AlreadyExistsException"),
    CommitFailedException: (409, "CommitFailedException"),
}


@contextlib.contextmanager
def serve(catalog: Catalog) -> Generator[str]:
    """Serve `catalog` on a free port; yields the URL."""
    handler = type("Handler", (_Handler,), {"catalog": catalog})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    catalog: Catalog
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def _serve(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        body = json.loads(self.rfile.read(length) or b"{}") if length else {}
        try:
            status, answer = self._answer(unquote(urlsplit(self.path).path), body)
        except tuple(_STATUS) as error:
            status, kind = _STATUS[type(error)]
            answer = {"error": {"message": str(error), "type": kind, "code": status}}
        except OSError as error:  # of its files, so the answer is one of the server's own failures
            status, answer = 500, {"error": {"message": str(error), "type": "RuntimeException", "code": 500}}
        content = b"" if answer is None else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_POST = do_HEAD = do_DELETE = _serve

    def _answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/v1/config":
            return 200, {"defaults": {}, "overrides": {}}
        if path == "/v1/namespaces":
            if self.command == "GET":
                return 200, {"namespaces": [list(name) for name in self.catalog.list_namespaces()]}
            self.catalog.create_namespace(tuple(body["namespace"]))
            return 200, {"namespace": body["namespace"], "properties": {}}
        if match := re.fullmatch(r"/v1/namespaces/([^/]+)", path):
            if not self.catalog.namespace_exists(match[1]):
                raise NoSuchNamespaceError(match[1])
            return 204, None
        if match := re.fullmatch(r"/v1/namespaces/([^/]+)/register", path):
            return 200, _shown(self.catalog.register_table((match[1], body["name"]), body["metadata-location"]))
        if match := re.fullmatch(r"/v1/namespaces/([^/]+)/tables", path):
            return self._tables(match[1], body)
        if match := re.fullmatch(r"/v1/namespaces/([^/]+)/tables/([^/]+)", path):
            return self._table((match[1], match[2]), body)
        return 404, {"error": {"message": path, "type": "NotFound", "code": 404}}

    def _tables(self, namespace: str, body: dict[str, Any]) -> tuple[int, Any]:
        if self.command == "GET":
            names = self.catalog.list_tables(namespace)
            return 200, {"identifiers": [{"namespace": list(n[:-1]), "name": n[-1]} for n in names]}
        table = self.catalog.create_table(
            (namespace, body["name"]),
            schema=Schema.model_validate(body["schema"]),
            partition_spec=PartitionSpec.model_validate(body["partition-spec"]),
            sort_order=SortOrder.model_validate(body["write-order"]),
            properties=body.get("properties") or {},
        )
        return 200, _shown(table)

    def _table(self, name: tuple[str, str], body: dict[str, Any]) -> tuple[int, Any]:
        if self.command == "DELETE":
            self.catalog.drop_table(name)
            return 204, None
        table = self.catalog.load_table(name)
        if self.command == "POST":
            identifier = {"namespace": [name[0]], "name": name[1]}
            request = CommitTableRequest.model_validate({"identifier": identifier, **body})
            self.catalog.commit_table(table, request.requirements, request.updates)
            table = self.catalog.load_table(name)
        return (204, None) if self.command == "HEAD" else (200, _shown(table))


def _shown(table: Table) -> dict[str, Any]:
    metadata = json.loads(table.metadata.model_dump_json())
    return {"metadata-location": table.metadata_location, "metadata": metadata, "config": {}}
