"""How a token is drawn from logits: the values, checked.

The drawing itself is native (csrc/sampler.cpp).
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pyemo.errors import InputError, all_calls_named, held_by

if TYPE_CHECKING:
    from pyemo.engine.grammar import Grammar

MIN_TEMPERATURE = 0.001


@held_by("sampler")
@all_calls_named
@dataclass(frozen=True)
class SamplerParams:
    """The sampler of one sequence; llama.cpp's defaults and order, penalties off.

    First the bias, then the penalties, top-k, top-p, min-p and the temperature.

    ```
    SamplerParams()                  # temperature 0.8, top-k 40, top-p 0.95, min-p 0.05
    SamplerParams(temperature=0)     # greedy: the most likely token, every time
    SamplerParams(seed=7)            # another draw
    ```

    The random number of the token at position p depends on ``seed`` and p alone, so going back and
    forking need no state: the same distribution at the same place gives the same token again.

    Attributes:
        temperature: 0 is greedy; else 0.001 to 100. Less than that overflows the softmax.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the most likely tokens up to this share of probability (Holtzman et al. 2019,
            arXiv 1904.09751); 0 < top_p <= 1, 1 keeps all.
        min_p: drop tokens below this share of the most likely one's probability (Nguyen et al.
            2024, arXiv 2407.01082); 0 <= min_p <= 1, 0 keeps all.
        repeat_penalty: divide positive and multiply negative logits of the last ``repeat_last_n``
            tokens by this (Keskar et al. 2019, arXiv 1909.05858); 0.01 to 100, 1 is off.
        repeat_last_n: tokens that the penalties look back on, the prompt's included; >= 0.
        seed: 0 <= seed < 2**64.
        dry_multiplier: DRY, "don't repeat yourself" (llama.cpp's ``llama_sampler_init_dry``): the
            token that would go on with a repeat of ``length`` tokens, at least
            ``dry_allowed_length``, loses dry_multiplier * dry_base ** (length - dry_allowed_length)
            of its logit. 0 is off, up to 100; 0.8 keeps long steered replies out of loops.
        dry_base: 1 <= dry_base <= 10.
        dry_allowed_length: 1 or more; repeats of fewer tokens cost nothing.
        dry_last_n: tokens that repeats are looked for in, the prompt's included; >= 0.
        frequency_penalty: taken from a token's logit for each time that it is among the last
            ``repeat_last_n``, as OpenAI's and llama.cpp's; -100 to 100, 0 is off.
        presence_penalty: taken once if it is among them; -100 to 100, 0 is off.
        stay_in_script: draw no letter of a script (Latin, Cyrillic, CJK ...) that the tokens so far
            have none of; emoji, digits and punctuation are in all. A token that would is drawn
            again from those that do not, so a text is bit for bit the same up to there.
        scripts: scripts that may come all the same, by their Unicode names; with
            ``stay_in_script``. A prompt "say it in Russian" needs ("cyrillic",).
        grammar: what an answer may be (:class:`pyemo.Grammar`); None for anything. A token that it
            does not allow is drawn again among those that it does, with another random number.
        logit_bias: (token, bias) pairs; the bias, -100 to 100, or -inf for never, is added to the
            token's logit before all else. What ``grammar`` or ``stay_in_script`` ask for comes all
            the same where nothing else is left. Of a token that is named twice both count.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    seed: int = 0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_last_n: int = 256
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    stay_in_script: bool = False
    scripts: tuple[str, ...] = ()
    grammar: Grammar | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        warm = self.temperature == 0 or MIN_TEMPERATURE <= self.temperature <= 100
        _require("temperature", self.temperature, warm, f"0 (greedy), or {MIN_TEMPERATURE} to 100")
        _require("top_k", self.top_k, 0 <= self.top_k < 2**31, "0 (off) or more")
        _require("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 up to 1 (off)")
        _require("min_p", self.min_p, 0 <= self.min_p <= 1, "0 (off) to 1")
        penalty = self.repeat_penalty
        _require("repeat_penalty", penalty, 0.01 <= penalty <= 100, "0.01 to 100; 1 is off")
        _require("repeat_last_n", self.repeat_last_n, 0 <= self.repeat_last_n < 2**31, "0 or more")
        _require("seed", self.seed, 0 <= self.seed < 2**64, "0 to 2**64 - 1")
        _require(
            "dry_multiplier", self.dry_multiplier, 0 <= self.dry_multiplier <= 100, "0 (off) to 100"
        )
        _require("dry_base", self.dry_base, 1 <= self.dry_base <= 10, "1 to 10")
        length = self.dry_allowed_length
        _require("dry_allowed_length", length, 1 <= length < 2**31, "1 or more")
        _require("dry_last_n", self.dry_last_n, 0 <= self.dry_last_n < 2**31, "0 or more")
        for name in ("frequency_penalty", "presence_penalty"):
            value = getattr(self, name)
            _require(name, value, -100 <= value <= 100, "-100 to 100; 0 is off")
        for name in ("top_k", "repeat_last_n", "seed", "dry_allowed_length", "dry_last_n"):
            if not isinstance(getattr(self, name), int):
                raise InputError(f"{name} = {getattr(self, name)!r} is not a whole number")
        self._check_scripts()
        self._check_grammar()
        self._check_bias()

    def _check_scripts(self) -> None:
        if not isinstance(self.stay_in_script, bool):
            raise InputError(f"stay_in_script = {self.stay_in_script!r}; it must be True or False")
        if isinstance(self.scripts, str) or not all(isinstance(name, str) for name in self.scripts):
            raise InputError(f"scripts = {self.scripts!r}; write a list of names: ('cyrillic',)")
        object.__setattr__(self, "scripts", tuple(self.scripts))
        if self.scripts and not self.stay_in_script:
            raise InputError(
                f"scripts = {self.scripts!r} are exceptions of stay_in_script=True, which is off"
            )

    def _check_grammar(self) -> None:
        if self.grammar is None:
            return
        from pyemo.engine.grammar import Grammar  # it brings the core; values do not

        if not isinstance(self.grammar, Grammar):
            raise InputError(
                f"grammar = {self.grammar!r}; it must be a Grammar: Grammar('root ::= ...')"
            )

    def _check_bias(self) -> None:
        try:
            pairs = [(operator.index(token), float(1.0 * bias)) for token, bias in self.logit_bias]
        except (TypeError, ValueError, OverflowError):
            raise InputError(
                f"logit_bias = {str(self.logit_bias)[:60]}; write pairs of a token's id and a "
                "number: ((5, -100.0),)"
            ) from None
        for token, bias in pairs:
            if not 0 <= token < 2**31:
                raise InputError(f"logit_bias has the token {token}, which no vocabulary has")
            if bias != -math.inf:
                _require("logit_bias", bias, -100 <= bias <= 100, "-100 to 100, or -inf for never")
        object.__setattr__(self, "logit_bias", tuple(pairs))


def _require(name: str, value: float, holds: bool, allowed: str) -> None:
    if not holds or not math.isfinite(value):
        raise InputError(f"{name} = {value!r} is outside its range: {allowed}")


GREEDY = SamplerParams(temperature=0)
STANDARD = SamplerParams(temperature=0.3, dry_multiplier=0.8)
"""pyemo's own, where none is given: llama.cpp's defaults but for two. Temperature 0.3, not 0.8:
blind readers found 84% of steered texts coherent and not 68% (docs/measurements/voices.md). And
DRY, since steered replies fail by looping first."""


def chosen(sampler: SamplerParams | None, seed: int | None = None) -> SamplerParams:
    """Return the sampler that a call means: ``STANDARD`` where none is given, with its seed."""
    sampler = sampler or STANDARD
    return sampler if seed is None else replace(sampler, seed=seed)
