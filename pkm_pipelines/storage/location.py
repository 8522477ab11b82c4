"""Where a store lies: one URL, and how each library wants to be told about it.

`file://` and `s3://` are equals. Credentials come from the standard `AWS_*` variables only and are passed
to every library by hand: a library left to look for them itself asks a metadata address and hangs.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pkm_pipelines.model.errors import SettingsError


@dataclass(frozen=True)
class S3Options:
    """Access to S3, read from `AWS_*`; secrets are kept out of `repr`."""

    region: str
    endpoint: str | None = None
    access_key_id: str | None = field(default=None, repr=False)
    secret_access_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)

    @classmethod
    def from_environment(cls) -> S3Options:
        """Read `AWS_*`; raises `SettingsError` if the key pair is missing."""
        env = os.environ
        key, secret = env.get("AWS_ACCESS_KEY_ID"), env.get("AWS_SECRET_ACCESS_KEY")
        if not key or not secret:
            raise SettingsError("AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY: must be set to use an s3:// URL")
        return cls(
            region=env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION") or "us-east-1",
            endpoint=env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL"),
            access_key_id=key,
            secret_access_key=secret,
            session_token=env.get("AWS_SESSION_TOKEN"),
        )

    @property
    def allow_http(self) -> bool:
        """Whether the endpoint is plain HTTP."""
        return bool(self.endpoint and self.endpoint.startswith("http://"))

    def object_store(self) -> dict[str, str]:
        """Options by the names of the Rust object_store crate (obstore, lance, slatedb, polars)."""
        options = {
            "aws_region": self.region,
            "aws_endpoint": self.endpoint,
            "aws_access_key_id": self.access_key_id,
            "aws_secret_access_key": self.secret_access_key,
            "aws_session_token": self.session_token,
        }
        kept = {key: value for key, value in options.items() if value}
        if self.allow_http:
            kept["aws_allow_http"] = "true"
        return kept

    def pyiceberg(self) -> dict[str, str]:
        """Options by pyiceberg's names."""
        options = {
            "s3.region": self.region,
            "s3.endpoint": self.endpoint,
            "s3.access-key-id": self.access_key_id,
            "s3.secret-access-key": self.secret_access_key,
            "s3.session-token": self.session_token,
        }
        return {key: value for key, value in options.items() if value}


@dataclass(frozen=True)
class Location:
    """A parsed store URL."""

    url: str

    def __post_init__(self) -> None:
        if urlsplit(self.url).scheme not in ("file", "s3"):
            raise SettingsError(f"{self.url}: a store is addressed by a file:// or s3:// URL")

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this machine."""
        return self.url.startswith("file://")

    @property
    def path(self) -> Path:
        """The folder of a `file://` URL."""
        if not self.is_local:
            raise ValueError(f"{self.url} is not a local folder")
        return Path(unquote(urlsplit(self.url).path))

    @property
    def bucket(self) -> str:
        """The bucket of an `s3://` URL."""
        return urlsplit(self.url).netloc

    @property
    def prefix(self) -> str:
        """The key prefix of an `s3://` URL, without slashes at its ends."""
        return unquote(urlsplit(self.url).path).strip("/")

    def child(self, name: str) -> Location:
        """The location `name` below this one."""
        return Location(f"{self.url.rstrip('/')}/{name}")

    def s3(self) -> S3Options:
        """The S3 options of this location."""
        return S3Options.from_environment()
