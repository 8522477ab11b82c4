"""What may be shown of a URL."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pkm_pipelines.model.urls import redacted


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql+psycopg2://u:p%40ss@h:5432/db", "postgresql+psycopg2://u:***@h:5432/db"),
        ("postgresql://u@h/db?sslmode=require&password=hunter2", "postgresql://u@h/db?sslmode=require&password=***"),
        ("https://h/v1?access_token=abc&x=1#end", "https://h/v1?access_token=***&x=1#end"),
        ("https://:token@h/", "https://:***@h/"),
        ("sqlite:////home/a b/c.db", "sqlite:////home/a b/c.db"),
        ("s3://bucket/prefix@2:3/x", "s3://bucket/prefix@2:3/x"),
        ("no url at all", "no url at all"),
    ],
)
def test_hides_what_is_secret(url: str, shown: str) -> None:
    assert redacted(url) == shown


@given(st.text(min_size=8).map(lambda s: f"{s}Q7"), st.sampled_from(["postgresql", "https", "mysql+pymysql"]))
def test_no_password_survives_whatever_it_holds(password: str, scheme: str) -> None:
    """Also one with the characters that should have been percent-encoded."""
    shown = redacted(f"{scheme}://user:{password}@host.example/db")
    assert shown == f"{scheme}://user:***@host.example/db"
