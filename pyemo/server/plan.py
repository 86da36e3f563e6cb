"""What a server would offer and take, before a model is loaded."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from pyemo.engine.memory import memory_need
from pyemo.errors import InputError
from pyemo.files.catalog import resolve_model
from pyemo.server.config import ServerConfig
from pyemo.server.refusals import Refusal
from pyemo.server.steering_field import parsed, spelled
from pyemo.server.vectors import find


def plan_of(config: ServerConfig) -> dict[str, Any]:
    """Return for JSON what is offered and how much memory it takes, in bytes.

    Raises:
        ModelError: no such model, or its file is damaged.
        InputError: the folder of vectors, or the default mood, cannot be read.
    """
    model = resolve_model(config.model)
    need = memory_need(
        model.path,
        n_ctx=config.n_ctx,
        n_outputs=config.n_seq_max,
        n_batch=min(512, config.n_ctx),
        kv_type=config.kv_type,
    )
    try:
        terms = () if config.steering is None else parsed(config.steering, "steering").terms
    except Refusal as refusal:
        raise InputError(refusal.message) from None
    if config.api_key:
        access = "with a key"
    elif config.is_local:
        access = "this machine, without a key"
    else:
        access = "everybody who reaches the address, without a key"
    names = [model.name, *config.alias]
    return {
        "address": f"{config.host}:{config.port}",
        "access": access,
        "model": model.name,
        "models": [*names, *(f"{names[0]}:{preset}" for preset in config.presets)],
        "vectors": sorted({offer.name for offer in find(model.name, config.vectors)}),
        "steering": spelled(terms),
        "memory": {**asdict(need), "total": need.total},
        "n_seq_max": config.n_seq_max,
        "n_ctx": config.n_ctx,
        "max_queue": config.max_queue,
    }
