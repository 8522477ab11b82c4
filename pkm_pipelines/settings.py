"""Every knob of the project, in one place.

A value comes from a `PKM_*` environment variable, else from `pkm.toml`, else from the default here. Nested
values use a double underscore: `PKM_EMBEDDER__MODEL`; lists are JSON: `PKM_SOURCES`. Credentials are not settings:
they are read from the standard `AWS_*` variables when a store is opened, and are never shown. The one place where
a password can stand is the URL of the catalog; it is masked wherever settings are printed.
"""

from __future__ import annotations

import datetime as dt
import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings import SettingsError as UnreadableVariable

from pkm_pipelines.model.errors import SettingsError
from pkm_pipelines.model.globs import translate
from pkm_pipelines.model.urls import redacted

FILE_NAME = "pkm.toml"
PREFIX = "PKM_"
# Variables of the tests; README.md and the tests themselves say what each is for.
TEST_PREFIX = "PKM_TEST_"
# Variables of the project that are no settings: which file, how errors are shown, how much is tested.
OTHER_VARIABLES = {
    "PKM_CONFIG": "The settings file; the nearest `pkm.toml` at or above the present folder by default.",
    "PKM_DEBUG": "`1` shows the whole traceback of an error.",
    "PKM_TEST_BUDGET": "How much the tests try: `quick`, `ci` or `full`.",
    "PKM_STATE_TOKEN": "Shared secret of a state service on TCP.",
}
CATALOG_SCHEMES = ("sqlite", "postgresql", "postgresql+psycopg2", "glue", "http", "https")
_NO_PATH_OF_URL = re.compile(r"\?|%[0-9A-Fa-f]{2}")
SourceName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]


class SourceSettings(BaseModel):
    """Where notes come from: a folder, or a git repository."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    name: SourceName = Field(description="Name of the source: lower case letters, digits, '-' and '_'.")
    kind: Literal["folder", "git"] = Field(default="folder", description="A folder of notes, or a git repository.")
    path: Path = Field(description="The folder or repository; relative to `pkm.toml`.")
    branch: str | None = Field(default=None, description="Git branch; the repository's HEAD by default.")
    subfolder: str = Field(default="", description="Only this folder of a git repository is a vault.")
    include: tuple[str, ...] = Field(default=("**/*.md",), description="Globs of files that are notes.")
    exclude: tuple[str, ...] = Field(default=(), description="Globs of files that are left out.")
    flavour: Literal["auto", "obsidian", "logseq"] = Field(
        default="auto", description="How links and tags are written."
    )
    max_vanished_share: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="A run stops with a question when more of the notes than this vanish at once.",
    )
    max_media_bytes: int = Field(default=256 << 20, ge=0, description="Bytes of a larger file are not kept.")
    max_note_bytes: int = Field(
        default=64 << 20, gt=0, description="A larger file is listed as a problem and not read."
    )

    @field_validator("include", "exclude")
    @classmethod
    def _globs(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in value:
            translate(pattern)
        return value


class EmbedderSettings(BaseModel):
    """What turns text into vectors."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    model: str = Field(
        default="all-MiniLM-L6-v2",
        description="A sentence-transformers model by name or folder; `hashing` for a deterministic stand-in; `none`.",
    )
    backend: Literal["auto", "onnx", "torch"] = Field(
        default="auto", description="What runs the model; auto is the fastest."
    )
    batch_size: int = Field(default=8, gt=0, le=1024, description="Texts embedded at once.")
    chunk_tokens: int = Field(
        default=200, ge=16, le=8192, description="Tokens of a chunk, at most (the model's own tokens)."
    )


class StateSettings(BaseModel):
    """How the state service behaves."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    service: str | None = Field(
        default=None, description="`grpc+tcp://host:port` of a shared state service; started on this host by default."
    )
    idle_seconds: float = Field(default=60, gt=0, description="The service goes when nobody has asked for this long.")
    flush_ms: int = Field(default=5, ge=1, le=1000, description="How often the state is made durable, in milliseconds.")


class TablesSettings(BaseModel):
    """How tables are written."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    memory_mb: int = Field(
        default=1024,
        ge=64,
        description="Megabytes of rows that one write holds at most; what is larger goes through files of the table.",
    )


class MaintenanceSettings(BaseModel):
    """What is tidied up in tables, and when it is due."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    auto: bool = Field(default=True, description="Runs and sensors do what is due by themselves.")
    target_file_mb: int = Field(
        default=128, gt=0, le=4096, description="Size of a data file after compaction, in megabytes of Parquet."
    )
    target_state_file_mb: int = Field(
        default=16,
        gt=0,
        le=4096,
        description="The same where a merge writes whole files anew (copy-on-write): it bounds what one row costs.",
    )
    batch_mb: int = Field(
        default=512, gt=0, description="Megabytes that one commit of a compaction rewrites; a conflict repeats no more."
    )
    compact_unsorted: bool = Field(
        default=False, description="Compaction also rewrites files of full size that are not in the table's order."
    )
    small_files: int = Field(default=50, gt=1, description="Compaction is due at this many files that could be merged.")
    delete_files: int = Field(default=50, gt=0, description="Compaction is due at this many outstanding delete files.")
    deleted_share: float = Field(
        default=0.2, gt=0, le=1, description="Compaction is due when this share of the rows is deleted by position."
    )
    keep_snapshots: int = Field(
        default=50, gt=0, description="Snapshots kept of each branch: the newest ones. Tags and cuts are kept besides."
    )
    snapshot_age_hours: float = Field(
        default=0, ge=0, description="Snapshots younger than this are kept whatever their number."
    )
    snapshots: int = Field(default=100, gt=0, description="Expiry is due at this many snapshots that nothing holds.")
    bronze_days: int = Field(default=90, ge=0, description="How long bronze is kept, in days; 0 is always.")
    silver_days: int = Field(default=365, ge=0, description="How long silver is kept, in days; 0 is always.")
    gold_days: int = Field(default=0, ge=0, description="How long gold is kept, in days; 0 is always.")
    file_grace_minutes: float = Field(
        default=60,
        ge=0,
        description="Files of expired snapshots are deleted this much later, so that reads under way can end.",
    )
    orphan_age_hours: float = Field(
        default=72,
        ge=0,
        description="A file that nothing refers to is an orphan at this age; younger ones may be in use.",
    )
    manifests: int = Field(default=100, gt=0, description="Rewriting of manifests is due at this many of them.")
    manifest_mb: int = Field(default=8, gt=0, description="Size of a manifest after rewriting, in megabytes.")
    metadata_mb: int = Field(
        default=8, gt=0, description="Metadata of a table (without manifests) larger than this is debt."
    )
    fragments: int = Field(default=50, gt=1, description="Vectors are due at this many fragments that could be merged.")
    deletion_files: int = Field(
        default=50, gt=0, description="Vectors are due at this many deletion files that a compaction would take away."
    )
    unindexed_rows: int = Field(default=20_000, gt=0, description="Vectors are due at this many rows in no index.")
    versions: int = Field(
        default=200,
        gt=0,
        description="Vectors are due at this many versions that may be removed: old ones that no tag keeps.",
    )
    version_age_hours: float = Field(
        default=24, ge=0, description="Versions of vectors younger than this are kept; tags and cuts are kept besides."
    )
    state_files: int = Field(
        default=1000, gt=0, description="The state is due at this many objects that can be collected."
    )
    retention_hours: float = Field(default=24, gt=0, description="Hours between two looks for rows past their time.")
    orphans_hours: float = Field(default=168, gt=0, description="Hours between two searches for orphans.")


class Settings(BaseSettings):
    """All settings of one lakehouse. `home` is the folder of `pkm.toml`; `.pkm/` below it holds local data."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        env_ignore_empty=True,
        hide_input_in_errors=True,
    )

    home: Path = Field(default_factory=Path.cwd, description="Folder that relative paths start from.")
    warehouse: str = Field(default="", description="URL of the Iceberg warehouse, `file://` or `s3://`.")
    catalog: str = Field(
        default="",
        description="Iceberg catalog: `sqlite:///…`, `postgresql://…`, `glue://`, or a REST `https://…`.",
    )
    vectors: str = Field(default="", description="URL of the Lance vectors.")
    state: str = Field(default="", description="URL of the SlateDB state.")
    objects: str = Field(default="", description="URL of the content-addressed objects.")
    runtime_dir: Path | None = Field(
        default=None, description="Folder for sockets; the user's runtime folder by default."
    )
    spill_dir: Path | None = Field(
        default=None, description="Folder that large operations may spill to; off by default."
    )
    sources: tuple[SourceSettings, ...] = Field(default=(), description="Where notes come from.")
    embedder: EmbedderSettings = Field(default_factory=EmbedderSettings, description="What turns text into vectors.")
    state_service: StateSettings = Field(default_factory=StateSettings, description="The state service.")
    tables: TablesSettings = Field(default_factory=TablesSettings, description="How tables are written.")
    maintenance: MaintenanceSettings = Field(
        default_factory=MaintenanceSettings, description="What is tidied up in tables, and when it is due."
    )
    partitions_start: dt.date = Field(
        default=dt.date(2015, 1, 1), description="First day of the logs' daily partitions."
    )
    batch_notes: int = Field(default=2000, gt=0, description="Notes of one bronze commit, at most.")
    batch_mb: int = Field(default=64, gt=0, description="Megabytes of content of one bronze commit, at most.")
    sensor_seconds: int = Field(default=30, ge=30, description="Seconds between two looks of a change sensor.")
    daily_hour_utc: int = Field(default=3, ge=0, le=23, description="Hour of the daily schedule, UTC.")
    lease_seconds: float = Field(
        default=30, gt=1, description="A writer that shows no life for this long loses its lease."
    )
    keep_cuts_last: int = Field(default=50, ge=1, description="Cuts kept: the newest ones.")
    keep_cuts_hourly: int = Field(default=24, ge=0, description="Cuts kept: one an hour, for so many hours.")
    keep_cuts_daily: int = Field(default=30, ge=0, description="Cuts kept: one a day, for so many days.")
    keep_cuts_monthly: int = Field(default=12, ge=0, description="Cuts kept: one a month, for so many months.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments over the environment over the file that `load` has read; nested values are merged."""
        return init_settings, env_settings, InitSettingsSource(settings_cls, _file_values.get())

    @field_validator("warehouse", "vectors", "state", "objects")
    @classmethod
    def _url(cls, value: str) -> str:
        if value and not value.startswith(("file:///", "s3://")):
            raise ValueError("must be a file:/// or s3:// URL")
        if "@" in value.split("://", 1)[-1].split("/", 1)[0]:
            raise ValueError("must hold no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead")
        return value.rstrip("/")

    @field_validator("home")
    @classmethod
    def _home(cls, value: Path) -> Path:
        if _NO_PATH_OF_URL.search(str(value)):
            raise ValueError("its path has a '?' or a '%', with which SQLite's URLs cannot name the files in it")
        return value

    @field_validator("catalog")
    @classmethod
    def _catalog(cls, value: str) -> str:
        if value.split("://", 1)[0] not in CATALOG_SCHEMES or "://" not in value:
            raise ValueError(f"must be a URL that starts with one of {', '.join(CATALOG_SCHEMES)}")
        return value

    @field_validator("partitions_start")
    @classmethod
    def _past(cls, value: dt.date) -> dt.date:
        if value > (today := dt.datetime.now(dt.UTC).date()):
            raise ValueError(f"must not lie in the future: what is read today ({today}, UTC) belongs to that day")
        return value

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        home = Path(values.get("home") or Path.cwd()).expanduser().resolve()
        data = home / ".pkm"
        filled: dict[str, Any] = {
            "warehouse": (data / "warehouse").as_uri(),
            "catalog": f"sqlite:///{data / 'catalog.db'}",
            "vectors": (data / "vectors").as_uri(),
            "state": (data / "state").as_uri(),
            "objects": (data / "objects").as_uri(),
        }
        folders = {
            key: home / Path(values[key]).expanduser() for key in ("runtime_dir", "spill_dir") if values.get(key)
        }
        return {**values, "home": home, **folders, **{k: values.get(k) or v for k, v in filled.items()}}

    @model_validator(mode="after")
    def _unique_sources(self) -> Settings:
        names = [source.name for source in self.sources]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two sources are called {name!r}")
        return self

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        """What `repr` and `str` show: the URLs without their secrets."""
        for name, value in super().__repr_args__():
            yield name, redacted(value) if isinstance(value, str) else value

    @cached_property
    def data_dir(self) -> Path:
        """Where local files live: Dagster's instance, caches, and every store by default."""
        return self.home / ".pkm"

    def source(self, name: str) -> SourceSettings:
        """The source called `name`; raises `SettingsError` if there is none."""
        for source in self.sources:
            if source.name == name:
                return source
        known = ", ".join(source.name for source in self.sources) or "none"
        raise SettingsError(f"sources: no source is called {name!r} (there are: {known})")

    def source_path(self, source: SourceSettings) -> Path:
        """The absolute path of a source."""
        return (self.home / source.path.expanduser()).absolute()


_NO_VALUES: dict[str, Any] = {}
_file_values: ContextVar[dict[str, Any]] = ContextVar("file_values", default=_NO_VALUES)


def find_file(start: Path | None = None) -> Path | None:
    """The `pkm.toml` that counts: `PKM_CONFIG`, else the nearest one at or above `start`."""
    if named := os.environ.get("PKM_CONFIG"):
        return Path(named).expanduser()
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if (folder / FILE_NAME).is_file():
            return folder / FILE_NAME
    return None


def load(file: Path | None = None, **overrides: Any) -> Settings:
    """Read the settings: `overrides` over the environment over `pkm.toml` over defaults.

    Raises `SettingsError` with one line that names the key, and never the value of anything secret.
    """
    file = file or find_file()
    values: dict[str, Any] = {}
    if file is not None:
        try:
            values = tomllib.loads(file.read_text(encoding="utf-8"))
        except (FileNotFoundError, IsADirectoryError):
            raise SettingsError(f"{file}: no such settings file (write one with `pkm init`)") from None
        except PermissionError:
            raise SettingsError(f"{file}: may not be read; check its permissions") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SettingsError(f"{file}: not valid TOML: {error}") from None
        folder = file.resolve().parent
        home = values.get("home", "")
        if not isinstance(home, str):
            raise SettingsError(f"{file}: home: must be a path in quotes")
        values["home"] = folder / Path(home).expanduser()
    token = _file_values.set(values)
    try:
        settings = Settings(**overrides)
    except ValidationError as error:
        raise SettingsError(_one_line(error, file)) from None
    except UnreadableVariable as error:
        # Its text is `… for field "sources" from source …`; the value stands only in the cause.
        key = str(error).split('"')[1] if '"' in str(error) else "settings"
        raise SettingsError(f"{PREFIX}{key.upper()}: must be JSON") from None
    finally:
        _file_values.reset(token)
    if unknown := unknown_variables():
        close = difflib.get_close_matches(unknown[0].upper(), _known_variables(), n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise SettingsError(f"{unknown[0]}: there is no such setting{hint}")
    return settings


def variable(*path: str | int) -> str:
    """The environment variable of a setting: `variable("embedder", "model")` is `PKM_EMBEDDER__MODEL`."""
    return PREFIX + "__".join(str(part) for part in path).upper()


def unknown_variables(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Names of `PKM_*` variables that mean nothing here, most likely misspelt settings."""
    known = _known_variables()
    return sorted(
        name
        for name in environ
        if (upper := name.upper()).startswith(PREFIX) and upper not in known and not upper.startswith(TEST_PREFIX)
    )


def _known_variables() -> set[str]:
    known = {variable(name) for name in Settings.model_fields} | set(OTHER_VARIABLES)
    for name, field in Settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            known |= {variable(name, inner) for inner in field.annotation.model_fields}
    return known


def _one_line(error: ValidationError, file: Path | None) -> str:
    """The first thing that is wrong, as `where: key: what`."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    path = first["loc"]
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "there is no such setting" + _guess(path)
    elif first["type"] == "tuple_type":
        message = "must be a list" + (", each of it a block `[[sources]]`" if path == ("sources",) else "")
    elif first["type"] == "string_pattern_mismatch":
        # Only names have a pattern.
        message = "must be at most 63 lower case letters, digits, '-' and '_', the first one a letter or a digit"
    # A list comes from the environment as a whole, so its variable is the one that the path begins with.
    named = next((name for name in (variable(*path), variable(*path[:1])) if os.environ.get(name)), None)
    if named and path:
        inner = "" if named == variable(*path) else ".".join(str(part) for part in path[1:]) + ": "
        return f"{named}: {inner}{message}"
    key = ".".join(str(part) for part in path) or "sources"
    return f"{file}: {key}: {message}" if file else f"{key}: {message}"


def _guess(path: tuple[int | str, ...]) -> str:
    models: dict[str, type[BaseModel]] = {
        "sources": SourceSettings,
        "embedder": EmbedderSettings,
        "state_service": StateSettings,
        "maintenance": MaintenanceSettings,
        "tables": TablesSettings,
    }
    model = models.get(str(path[0]), Settings) if len(path) > 1 else Settings
    close = difflib.get_close_matches(str(path[-1]), model.model_fields, n=1) if path else []
    return f" (did you mean {close[0]}?)" if close else ""
