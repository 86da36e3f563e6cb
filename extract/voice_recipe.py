"""How a voice is trained, every choice, as a value that is written into its vector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from pyemo.errors import InputError
from pyemo.extract.recipe import (
    PROVENANCE,
    REPLIES,
    checked_layers,
    layer_range,
    parse_recipe,
    recipe_text,
)
from pyemo.extract.training import TrainingChoices

VOICE_RECIPE = "trained"


@dataclass(frozen=True)
class VoiceRecipe:
    """Every choice of a voice's training.

    Attributes:
        name: what tables call it.
        layers: half-open range of layers as shares of the depth, such as (0.33, 0.83).
        training: the steps and the loss.
        ends: the token that ends a reply is learned with it, so that steered replies end where
            those of the training do.
    """

    name: str = VOICE_RECIPE
    layers: tuple[float, float] = (0.15, 0.9)
    training: TrainingChoices = field(default_factory=TrainingChoices)
    ends: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise InputError(f"recipe: name = {self.name!r} is empty; give it a word")
        object.__setattr__(self, "layers", checked_layers(self.layers))
        if not isinstance(self.ends, bool):
            raise InputError(f"recipe: ends = {self.ends!r}; it must be true or false")

    def layer_range(self, n_layer: int) -> range:
        """Return the layers that are steered in a model of ``n_layer`` blocks; never the first or
        the last.

        Raises:
            InputError: fewer than 3 blocks.
        """
        if n_layer < 3:
            raise InputError(
                f"the model has {n_layer} blocks; the first and the last are never steered, so it "
                "needs at least 3"
            )
        return layer_range(self.layers, n_layer)

    def to_toml(self, provenance: Mapping[str, Any] | None = None) -> str:
        """Return every choice as TOML text, with what is said of one training in a table."""
        import tomli_w

        values: dict[str, Any] = {
            "name": self.name,
            "source": REPLIES,
            "layers": list(self.layers),
            "ends": self.ends,
            "training": asdict(self.training),
        }
        if provenance is not None:
            values[PROVENANCE] = dict(provenance)
        return tomli_w.dumps(values)

    @classmethod
    def from_toml(cls, text: str) -> VoiceRecipe:
        """Return the recipe that ``text`` writes; also that in a vector's metadata.

        Raises:
            InputError: not TOML, an unknown or missing key, or a value outside its range.
        """
        values = parse_recipe(text)
        values.pop(PROVENANCE, None)
        training = values.pop("training", {})
        known = {item.name for item in fields(TrainingChoices)}
        if (
            values.pop("source", None) != REPLIES
            or not isinstance(training, dict)
            or set(training) - known
            or set(values) - {"name", "layers", "ends"}
        ):
            raise InputError(
                f'a recipe of voices has source = "{REPLIES}", name, layers, ends and a table '
                f"[training] of {', '.join(sorted(known))}"
            )
        values.setdefault("ends", False)  # vectors made before had none
        if isinstance(values.get("layers"), list):
            values["layers"] = tuple(values["layers"])
        return cls(**values, training=TrainingChoices(**training))

    @classmethod
    def load(cls, name_or_path: str = VOICE_RECIPE) -> VoiceRecipe:
        """Return the bundled recipe of that name, or one from a TOML file; a file that exists wins.

        Raises:
            InputError: neither, or not a recipe of voices.
        """
        return cls.from_toml(recipe_text(name_or_path))
