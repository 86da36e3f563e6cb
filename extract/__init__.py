"""Finding an emotion's direction in a model's hidden states. Owns texts, recipes and back ends.

Start at `sources`: the texts a direction is made of. Nothing here is needed to steer.
"""

from pyemo.extract.sources import EmotionSource, Vignette, load_emotions_file

__all__ = ["EmotionSource", "Vignette", "load_emotions_file"]
