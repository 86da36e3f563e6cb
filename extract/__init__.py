"""Finding an emotion's direction in a model's hidden states. Owns texts, recipes and back ends.

```
from pyemo.extract import EngineBackend, Recipe, extract

recipe = Recipe.load("paper-comprehension")
with EngineBackend.open("smollm2-135m-instruct", recipe) as backend:
    vectors = extract(backend, ["anger", "joy"], recipe=recipe)
vectors.save("my-vectors")
```

Start at `sources`: the texts a direction is made of. Nothing here is needed to steer. A name is
imported when it is first used (PEP 562): no back end is loaded for the sake of another.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyemo.extract.backend import Backend
    from pyemo.extract.engine_backend import EngineBackend
    from pyemo.extract.extraction import VectorSet, extract
    from pyemo.extract.own_voice import OwnVoice, learn_voice
    from pyemo.extract.quality import SetQuality, measure
    from pyemo.extract.recipe import Recipe, bundled_recipes
    from pyemo.extract.transformers_backend import TransformersBackend
    from pyemo.extract.voices import VoiceTrainer
    from pyemo.texts.pairs import ReplyPair, read_pairs
    from pyemo.texts.sources import EmotionSource, Vignette, load_emotions_file

__all__ = [
    "Backend",
    "EmotionSource",
    "EngineBackend",
    "OwnVoice",
    "Recipe",
    "ReplyPair",
    "SetQuality",
    "TransformersBackend",
    "VectorSet",
    "Vignette",
    "VoiceTrainer",
    "bundled_recipes",
    "extract",
    "learn_voice",
    "load_emotions_file",
    "measure",
    "read_pairs",
]

# public name -> the module it comes from
_HOMES = {
    "Backend": "pyemo.extract.backend",
    "EmotionSource": "pyemo.texts.sources",
    "EngineBackend": "pyemo.extract.engine_backend",
    "OwnVoice": "pyemo.extract.own_voice",
    "Recipe": "pyemo.extract.recipe",
    "ReplyPair": "pyemo.texts.pairs",
    "SetQuality": "pyemo.extract.quality",
    "TransformersBackend": "pyemo.extract.transformers_backend",
    "VectorSet": "pyemo.extract.extraction",
    "Vignette": "pyemo.texts.sources",
    "VoiceTrainer": "pyemo.extract.voices",
    "bundled_recipes": "pyemo.extract.recipe",
    "extract": "pyemo.extract.extraction",
    "learn_voice": "pyemo.extract.own_voice",
    "load_emotions_file": "pyemo.texts.sources",
    "measure": "pyemo.extract.quality",
    "read_pairs": "pyemo.texts.pairs",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pyemo.extract' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value  # found at once the next time
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
