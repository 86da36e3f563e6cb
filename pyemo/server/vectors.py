"""The vectors that a server offers: those of its folder, and those bundled for its model.

Owns names and what stands behind them. A client gives names only: they are looked up among what
was found on the disk, and never become a path.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pyemo import emotions
from pyemo.choices import VectorUse
from pyemo.engine.model import Model
from pyemo.errors import InputError, ModelError, PyemoError, VectorNotFoundError
from pyemo.files import catalog
from pyemo.files.local import FileStamp, file_stamp
from pyemo.vectors.control_vector import ControlVector

SUFFIX = ".gguf"


@dataclass(frozen=True)
class Offer:
    """One vector, under the name that clients use.

    Attributes:
        name: unique for each use.
        path: its file.
        use: "writing" steers, "reading" is for gauges.
    """

    name: str
    path: Path
    use: VectorUse


class Shelf:
    """The vectors of one server; any thread may call its methods.

    A mood that runs keeps the vector it began with, whatever becomes of the file.

    Args:
        folder: whose ``*.gguf`` are offered by their stem, before bundled ones of the same name.
    """

    def __init__(
        self, model: Model, folder: Path | None = None, *, allow_other_weights: bool = False
    ) -> None:
        """Find the vectors.

        Raises:
            InputError: ``folder`` cannot be read.
        """
        self._model = model
        self._folder = folder
        self._allow_other_weights = allow_other_weights
        self._lock = threading.Lock()
        self._unloaded: set[str] = set()
        self._offers: dict[tuple[str, VectorUse], Offer] = {}
        self._loaded: dict[tuple[str, VectorUse], tuple[FileStamp, ControlVector]] = {}
        self.reload()

    def reload(self) -> list[str]:
        """Look at the folder again; return the names. What changed on disk is read when needed.

        Raises:
            InputError: the folder cannot be read.
        """
        offers = {(offer.name, offer.use): offer for offer in find(self._model.name, self._folder)}
        with self._lock:
            self._offers = offers
            self._unloaded.clear()
            self._loaded = {key: kept for key, kept in self._loaded.items() if key in offers}
        return self.names()

    def names(self, use: VectorUse = "writing") -> list[str]:
        """Return the names that are offered, sorted."""
        with self._lock:
            return sorted(
                name
                for name, its_use in self._offers
                if its_use == use and name not in self._unloaded
            )

    def offers(self) -> list[Offer]:
        """Return what is offered, by name and use."""
        with self._lock:
            found = [offer for offer in self._offers.values() if offer.name not in self._unloaded]
        return sorted(found, key=lambda offer: (offer.name, offer.use))

    def load(self, name: str, use: VectorUse = "writing") -> ControlVector:
        """Return the vector of that name, checked against the model.

        Args:
            name: an emotion's other words, such as anger for angry, are understood.
            use: where there is none for reading, the one for writing.
        Raises:
            VectorNotFoundError: there is none; the message lists the names.
            VectorError: its file cannot be used; the message names no path.
        """
        offer = self._offer(name, use)
        try:
            return self._read(offer)
        except PyemoError as error:
            text = str(error).replace(str(offer.path), offer.path.name)
            raise type(error)(text) from None

    def unload(self, name: str) -> None:
        """Offer that vector no more, until :meth:`reload` or :meth:`restore`.

        Raises:
            VectorNotFoundError: it is not offered.
        """
        offer = self._offer(name, "writing")
        with self._lock:
            self._unloaded.add(offer.name)

    def restore(self, name: str) -> ControlVector:
        """Look at the folder again, and return the vector of that name.

        Raises:
            VectorError: as :meth:`load`.
        """
        offers = {(offer.name, offer.use): offer for offer in find(self._model.name, self._folder)}
        with self._lock:
            self._offers = offers
            self._unloaded.discard(_word(name, {its for its, _ in offers}))
        return self.load(name)

    def _offer(self, name: str, use: VectorUse) -> Offer:
        with self._lock:
            here = {its for its, _ in self._offers} - self._unloaded
            word = _word(name, here)
            found = self._offers.get((word, use)) or self._offers.get((word, "writing"))
        if word not in here or found is None:
            hint = catalog.nearest(name, [*sorted(here), *_aliases(here)])
            raise VectorNotFoundError(
                f"no vector {name[:80]!r} here; {hint}there are: "
                f"{', '.join(sorted(here)) or 'none'}"
            )
        return found

    def _read(self, offer: Offer) -> ControlVector:
        key = (offer.name, offer.use)
        try:
            stamp = file_stamp(offer.path)
        except ModelError:  # so it is called for any file
            raise VectorNotFoundError(
                f"the file of the vector {offer.name!r} is gone; read the folder again"
            ) from None
        with self._lock:
            kept = self._loaded.get(key)
        if kept is not None and kept[0] == stamp:
            return kept[1]
        vector = ControlVector.load(
            offer.path, self._model, allow_other_weights=self._allow_other_weights
        )
        if vector.name != offer.name:
            vector = vector.with_metadata(vector.metadata, name=offer.name)
        with self._lock:
            self._loaded[key] = (stamp, vector)
        return vector


def _word(name: str, here: set[str]) -> str:
    """Return the name as it is offered, if it is another word or case for one."""
    if name in here:
        return name
    word = name.strip().casefold()
    return word if word in here else emotions.ALIASES.get(word, word)


def _aliases(here: set[str]) -> list[str]:
    """Return the other words for what is here."""
    return [word for word, emotion in emotions.ALIASES.items() if emotion in here]


def find(model_name: str, folder: Path | None) -> Iterator[Offer]:
    """Yield the vectors bundled for a model, then those of the folder; later ones win.

    Raises:
        InputError: the folder cannot be read.
    """
    bundled = catalog.list_vectors(model_name)
    for name in bundled:
        writing = catalog.vector_path(name, model_name)
        reading = catalog.vector_path(name, model_name, "reading")
        yield Offer(name, writing, "writing")
        if reading != writing:
            yield Offer(name, reading, "reading")
    if folder is None:
        return
    try:
        files = sorted(path for path in folder.iterdir() if path.suffix == SUFFIX)
    except OSError as error:
        raise InputError(
            f"the folder of vectors {os.fspath(folder)!r} cannot be read: {error.strerror or error}"
        ) from None
    for path in files:
        yield Offer(path.stem, path, "writing")
        if path.stem in bundled:  # one's own is meant for both
            yield Offer(path.stem, path, "reading")
