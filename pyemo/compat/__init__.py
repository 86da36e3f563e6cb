"""What other libraries call by another name, over pyemo's engine: change one import, and steer."""

from pyemo.compat.llama import Llama

__all__ = ["Llama"]
