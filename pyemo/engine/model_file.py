"""A model as work for another machine names it: where it is found, and which bytes it must have."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from pyemo.engine.model import Model
from pyemo.errors import InputError
from pyemo.files.catalog import resolve_model
from pyemo.files.split_files import model_sha256


@dataclass(frozen=True)
class ModelFile:
    """A model's name on every machine, its file's SHA-256, and the threads of a decode."""

    name: str
    sha256: str
    n_threads: int = 1

    @classmethod
    def find(cls, name: str, n_threads: int = 1) -> ModelFile:
        """Return the file that a name means here.

        Raises:
            ModelNotFoundError, ModelLoadError: see :func:`pyemo.files.catalog.resolve_model`.
        """
        return cls(name, model_sha256(resolve_model(name).path), n_threads)

    def check(self, sha256: str) -> None:
        """Raise if the file that was found under the name is another one.

        Raises:
            InputError: it has another hash.
        """
        if sha256 != self.sha256:
            raise InputError(
                f"the model {self.name} is another file on this machine: its SHA-256 is "
                f"{sha256}, that of the job {self.sha256}; put the same file there"
            )


@functools.lru_cache(maxsize=4)
def load_model(name: str, sha256: str) -> Model:
    """Return the model of that name, loaded once a process.

    Raises:
        InputError: the file has another hash on this machine.
    """
    model = Model.load(name)
    ModelFile(name, sha256).check(model.file_sha256)
    return model
