"""What a generated token is, and how token bytes become text: streaming UTF-8, stop strings."""

from __future__ import annotations

import codecs
import operator
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import NamedTuple

from pyemo.engine.gauges import GaugeReading
from pyemo.errors import InputError

_LARGEST = 2**31 - 1  # what the engine counts with


def whole(name: str, value: object, low: int = -_LARGEST, high: int = _LARGEST) -> int:
    """Return ``value`` as an int if it is a whole number, of Python's or NumPy's.

    Raises:
        InputError: no whole number, or outside ``low`` to ``high``.
    """
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise InputError(f"{name} = {value!r}; it must be a whole number") from None
    if not low <= number <= high:
        raise InputError(f"{name} = {number} is outside {low} to {high}")
    return number


def token_ids(tokens: Sequence[int]) -> list[int]:
    """Return the ids as a list of ints; a NumPy array of whole numbers will do.

    Raises:
        InputError: anything else, such as text, bytes, floats or messages.
    """
    if isinstance(tokens, str | bytes | Mapping | Set):
        raise InputError(
            f"{str(tokens)[:60]!r} is not a list of token ids; make them with model.tokenize(...)"
        )
    try:
        ids = [operator.index(token) for token in tokens]
    except TypeError:
        raise InputError(
            f"token ids are whole numbers in a list, not {str(tokens)[:60]}; "
            "make them with model.tokenize(...)"
        ) from None
    if ids and not -_LARGEST <= min(ids) <= max(ids) <= _LARGEST:
        raise InputError(f"token id {max(ids, key=abs)} is out of range: no vocabulary has it")
    return ids


def stop_strings(stop: object) -> tuple[str, ...]:
    """Return the strings that end a text.

    Raises:
        InputError: anything but a list of non-empty strings.
    """
    if isinstance(stop, Iterable) and not isinstance(stop, str | bytes):
        strings = tuple(stop)
        if all(isinstance(text, str) and text for text in strings):
            return strings
    raise InputError(f"stop = {stop!r}; pass a list of non-empty strings")


class TokenLogprob(NamedTuple):
    """A token, its natural log-probability, and its bytes."""

    id: int
    logprob: float
    bytes: bytes = b""


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token.

    Attributes:
        text: what it adds to the reply's text. Empty while bytes of a character or of a possible
            stop string are still open; they come with a later token.
        id: token id.
        logprob: natural log-probability under the model as it is steered, at temperature 1.
        entropy: of the distribution it was drawn from, nats.
        top: the most likely tokens, if asked for.
        gauges: name -> reading of the state the token was drawn from, if the sequence has gauges.
        dose: |what the steering added| / |h| at the last block, measured there; 0 without gauges.
        bytes: its own bytes, whatever waits: of one character several tokens may have a part.
            Empty for control tokens.
        kind: "thinking" for thoughts and the tags around them, "answer" for all else.
    """

    text: str
    id: int
    logprob: float
    entropy: float
    top: tuple[TokenLogprob, ...] = ()
    gauges: Mapping[str, GaugeReading] = field(default_factory=dict)
    dose: float = 0.0
    bytes: bytes = b""
    kind: str = "answer"


def text_of(tokens: Sequence[Token], kind: str) -> str:
    """Return the text of the tokens of one kind; an answer's without the line ends before it."""
    text = "".join(token.text for token in tokens if token.kind == kind)
    return text.lstrip("\r\n") if len(text) < sum(len(token.text) for token in tokens) else text


class TextStream:
    """Turns token bytes into text that is never taken back.

    Bytes of an unfinished UTF-8 character wait for the rest (and become U+FFFD if it never comes);
    text that may be the beginning of a stop string waits until it is not.

    Args:
        stop: strings that end the text; they are not part of it.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._stop = stop_strings(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.stopped = False

    def mark(self) -> tuple[tuple[bytes, int], str, bool]:
        """Return where the stream is, for :meth:`return_to`."""
        return self._decoder.getstate(), self._held, self.stopped

    def return_to(self, mark: tuple[tuple[bytes, int], str, bool]) -> None:
        """Forget what was pushed since ``mark``."""
        state, self._held, self.stopped = mark
        self._decoder.setstate(state)

    def push(self, piece: bytes, *, is_thought: bool = False) -> str:
        """Return the text that is now certain; sets ``stopped`` when a stop string is complete.

        Args:
            is_thought: no stop string is looked for in it.
        """
        text = self._decoder.decode(piece)
        return text if is_thought else self._release(text)

    def flush(self) -> str:
        """Return what was held back; the text has ended."""
        if self.stopped:
            return ""
        text = self._release(self._decoder.decode(b"", final=True))
        if not self.stopped:
            text, self._held = text + self._held, ""
        return text

    def _release(self, text: str) -> str:
        if not self._stop:
            return text
        self._held += text
        found = [at for at in map(self._held.find, self._stop) if at >= 0]
        if found:
            self.stopped = True
            certain, self._held = self._held[: min(found)], ""
            return certain
        keep = max(self._open_end(stop) for stop in self._stop)
        cut = len(self._held) - keep
        certain, self._held = self._held[:cut], self._held[cut:]
        return certain

    def _open_end(self, stop: str) -> int:
        """Length of the longest end of the held text that begins ``stop``."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)
