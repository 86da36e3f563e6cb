"""The blocks of a transformers model, and the residual stream that comes out of them.

It is read before the final norm.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pyemo.errors import SteeringUnsupportedError

if TYPE_CHECKING:
    import torch

Take = Callable[[int, "torch.Tensor"], None]
"""Called with the index of the layer in those asked for, and its output (n_texts, n_tokens,
n_embd)."""


class BlockRecorder:
    """Finds a model's decoder blocks and hooks them.

    Raises:
        SteeringUnsupportedError: no list of blocks, or blocks that do not hand on one hidden state
            each.
    """

    def __init__(self, model: Any) -> None:
        self.config = model.config.get_text_config()
        self.blocks = _blocks(model, int(self.config.num_hidden_layers))
        self.n_embd = int(self.config.hidden_size)

    @contextlib.contextmanager
    def recording(self, layers: Sequence[int], take: Take) -> Iterator[None]:
        """Call ``take`` with the outputs of ``layers`` as long as the context lasts."""
        with contextlib.ExitStack() as hooks:
            for index, layer in enumerate(layers):
                handle = self.blocks[layer].register_forward_hook(_hook(index, take))
                hooks.callback(handle.remove)
            yield

    def prove(self, forward: Callable[[], object]) -> None:
        """Check on one forward pass that each block is run once and reads what the one before it
        gave.

        Args:
            forward: computes two tokens of one text.
        """
        outputs: dict[int, Any] = {}
        problems: list[str] = []

        def take(layer: int, output: torch.Tensor) -> None:
            if layer in outputs or tuple(output.shape) != (1, 2, self.n_embd):
                problems.append(f"block {layer} gives {tuple(output.shape)}, or more than once")
            outputs[layer] = output

        def check(layer: int) -> Callable[..., None]:
            def hook(_module: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
                given = inputs[0] if inputs else named.get("hidden_states")
                before = outputs.get(layer - 1)
                if (
                    given is None
                    or before is None
                    or given.shape != before.shape
                    or not bool((given.to(before.device) == before).all())
                ):
                    problems.append(f"block {layer} does not read what block {layer - 1} gave")

            return hook

        with contextlib.ExitStack() as hooks, self.recording(range(len(self.blocks)), take):
            for layer, block in enumerate(self.blocks[1:], start=1):
                handle = block.register_forward_pre_hook(check(layer), with_kwargs=True)
                hooks.callback(handle.remove)
            forward()
        if len(outputs) != len(self.blocks):
            problems.append(f"only {len(outputs)} of {len(self.blocks)} blocks are run")
        if problems:
            raise SteeringUnsupportedError(
                f"the blocks of {self.config.model_type!r} in transformers cannot be read: "
                f"{problems[0]}; use a GGUF file of the model and the engine back end"
            )


def _hook(index: int, take: Take) -> Callable[..., None]:
    def hook(_module: Any, _inputs: Any, output: Any) -> None:
        take(index, output[0] if isinstance(output, tuple) else output)

    return hook


def _blocks(model: Any, n_layer: int) -> list[Any]:
    """Return the decoder blocks: the outermost list of as many like modules as the text model has
    layers."""
    from torch.nn import ModuleList

    lists = [
        (name.count("."), name, module)
        for name, module in model.named_modules()
        if isinstance(module, ModuleList)
        and len(module) == n_layer
        and not {"vision_tower", "vision_model", "audio_tower", "encoder"} & set(name.split("."))
    ]
    if not lists:
        raise SteeringUnsupportedError(
            f"transformers' {type(model).__name__} has no list of {n_layer} decoder blocks to "
            "read; use a GGUF file of the model and the engine back end"
        )
    return list(min(lists, key=lambda found: found[:2])[2])
