"""What a server is told: every option with its default, from a file, the command line, or both.

Owns names and ranges, and which of them may not go together. Knows nothing of how it is served.
"""

from __future__ import annotations

import ipaddress
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pyemo.choices import DEFAULT_KV_TYPE, DEFAULT_MODEL, KVType
from pyemo.errors import InputError
from pyemo.files.inputs import read_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(ge=0, le=86400, allow_inf_nan=False)]


class Preset(BaseModel):
    """A mood under a name, offered as a model of its own.

    Attributes:
        steering: in any spelling of a request's field.
        guard: whether its replies are guarded; None as the server's.
    """

    model_config = ConfigDict(extra="forbid")

    steering: str | dict[str, Any] | list[Any]
    guard: bool | None = None


class ServerConfig(BaseModel):
    """The options of ``pyemo serve``.

    Attributes:
        model: catalog name, path or Hugging Face repository.
        alias: other names that requests may give the model.
        host, port: where it listens; port 0 takes a free one.
        api_key: keys, one of which each request must bring; empty for none.
        no_auth: listen on other addresses than this machine's without a key.
        cors: origins whose pages may read answers; "*" for all.
        n_seq_max: replies at a time.
        n_ctx: tokens that all of them hold together.
        row_budget: tokens of one decode at most: running replies first, then prompts; None lets the
            clock decide.
        max_queue: requests that may wait.
        vectors: folder whose vectors are offered.
        steering: mood of requests that name none, in any spelling of a request's field.
        guard: whether replies are guarded where a request does not say.
        repetition_stop: whether replies that go in circles end, where a request does not say.
        presets: name -> mood.
        max_body: bytes of a body at most.
        read_timeout: seconds in which a request must arrive.
        time_limit: seconds that a reply may take, its time in the queue included.
        drain: seconds that running replies have when the server is to end.
    """

    model_config = ConfigDict(extra="forbid")

    model: str = DEFAULT_MODEL
    alias: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    api_key: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    no_auth: bool = False
    cors: tuple[str, ...] = ()
    n_seq_max: Annotated[int, Field(ge=1, le=256)] = 8
    n_ctx: Count = 4096
    row_budget: Count | None = None
    max_queue: Count = 64
    prompt_cache: bool = True
    threads: Count | Literal["auto", "live"] | None = None
    kv_type: KVType = DEFAULT_KV_TYPE
    vectors: Path | None = None
    allow_other_weights: bool = False
    steering: str | dict[str, Any] | list[Any] | None = None
    guard: bool = False
    repetition_stop: bool = True
    presets: dict[str, Preset] = Field(default_factory=dict)
    max_body: Count = 4 << 20
    read_timeout: Annotated[float, Field(gt=0, le=86400)] = 20.0
    time_limit: Annotated[float, Field(gt=0, le=86400)] = 600.0
    drain: Seconds = 10.0

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def read_config(path: str | os.PathLike[str] | None, options: Mapping[str, Any]) -> ServerConfig:
    """Return what a file and the command line say; what the command line says wins.

    Args:
        path: a TOML file; None for none. Paths in it are relative to it.
        options: those that were given.
    Raises:
        InputError: a file that cannot be read, an option that does not exist or is outside its
            range, or an address that others reach without a key.
    """
    values: dict[str, Any] = {}
    if path is not None:
        values = _of_file(Path(path))
    values.update(options)
    try:
        config = ServerConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"]))
        raise InputError(f"{name} = {first.get('input')!r}: {first['msg']}") from None
    if not config.is_local and not config.api_key and not config.no_auth:
        raise InputError(
            f"on {config.host} others can reach the server: give a key with --api-key, or say "
            "--no-auth; --host 127.0.0.1 is for this machine alone"
        )
    if bad := [name for name in config.presets if not name or any(c in name for c in ":=@, \n")]:
        raise InputError(f"the preset's name {bad[0]!r} has one of : = @ , or a space in it")
    return config


def _of_file(path: Path) -> dict[str, Any]:
    text = read_text(path, "configuration file", "give the path of a TOML file")
    try:
        values: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"the configuration file {path} is not TOML: {error}") from None
    for name in ("alias", "api_key", "cors"):
        if isinstance(values.get(name), str):
            values[name] = [values[name]]
    if isinstance(values.get("vectors"), str):
        values["vectors"] = path.parent / os.path.expanduser(values["vectors"])
    return values
