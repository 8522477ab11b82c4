"""Store URLs: parsed once, and handed to each library in its own words."""

from __future__ import annotations

import pytest

from pkm_pipelines.model.errors import SettingsError
from pkm_pipelines.storage.location import Location, S3Options

SECRET = "hunter2-very-secret"


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    return monkeypatch


def test_a_folder() -> None:
    location = Location("file:///data/Mein%20Ged%C3%A4chtnis/x")
    assert location.is_local
    assert str(location.path) == "/data/Mein Gedächtnis/x"
    assert location.child("y").path == location.path / "y"


def test_a_bucket() -> None:
    location = Location("s3://notes/a/b/")
    assert not location.is_local
    assert (location.bucket, location.prefix) == ("notes", "a/b")
    assert location.child("c").url == "s3://notes/a/b/c"
    assert Location("s3://notes").prefix == ""
    with pytest.raises(ValueError, match="not a local folder"):
        _ = location.path


@pytest.mark.parametrize("url", ["/data/x", "https://host/x", "gs://bucket/x", ""])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="file:// or s3://"):
        Location(url)


def test_the_standard_variables_reach_every_library(aws: pytest.MonkeyPatch) -> None:
    aws.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9000")
    aws.setenv("AWS_SESSION_TOKEN", "session")
    aws.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    options = Location("s3://notes").s3()
    assert options.object_store() == {
        "aws_region": "eu-west-1",
        "aws_endpoint": "http://127.0.0.1:9000",
        "aws_access_key_id": "key",
        "aws_secret_access_key": SECRET,
        "aws_session_token": "session",
        "aws_allow_http": "true",
    }
    assert options.pyiceberg() == {
        "s3.region": "eu-west-1",
        "s3.endpoint": "http://127.0.0.1:9000",
        "s3.access-key-id": "key",
        "s3.secret-access-key": SECRET,
        "s3.session-token": "session",
    }


def test_the_narrower_variable_wins(aws: pytest.MonkeyPatch) -> None:
    aws.setenv("AWS_ENDPOINT_URL", "http://general")
    aws.setenv("AWS_ENDPOINT_URL_S3", "https://special")
    aws.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    aws.setenv("AWS_REGION", "eu-west-2")
    options = S3Options.from_environment()
    assert (options.endpoint, options.region, options.allow_http) == ("https://special", "eu-west-2", False)


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_a_missing_key_is_an_error_and_no_search_for_one(aws: pytest.MonkeyPatch, name: str) -> None:
    aws.delenv(name)
    with pytest.raises(SettingsError, match=name):
        S3Options.from_environment()


def test_secrets_stay_out_of_repr(aws: pytest.MonkeyPatch) -> None:
    assert SECRET not in repr(S3Options.from_environment())
