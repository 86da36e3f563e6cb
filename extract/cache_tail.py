"""Replies behind an edited cache, run again and again with rows that are learned.

A prompt's keys and values but for its last token do not depend on the rows, so they are computed
once. Knows torch and transformers' caches; nothing of emotions or of how rows are learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyemo.extract.steered_tail import ReplyTokens

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class FrozenPrompt:
    """A text whose prompt, but for its last token, is computed.

    Attributes:
        text: its tokens.
        keys, values: one for each layer, (n_head_kv, begin - 1, head_dim).
    """

    text: ReplyTokens
    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]


class CacheTail:
    """A model in evaluation mode whose values in the cells before a prompt's last are edited.

    Args:
        model: a causal language model of transformers; its weights are frozen here.
        n_cells: how many cells: the last token's is not one of them.
    """

    def __init__(self, model: Any, n_cells: int) -> None:
        self._model = model.requires_grad_(False)
        self._n_cells = n_cells
        self._kept: dict[tuple[int, ...], tuple[Any, Any]] = {}

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        device: torch.device = self._model.device
        return device

    def freeze(self, texts: Sequence[ReplyTokens]) -> list[FrozenPrompt]:
        """Return the texts with what does not depend on the rows, in their order."""
        import torch
        from transformers import DynamicCache

        frozen = []
        for text in texts:
            prompt = text.tokens[: text.begin - 1]
            if prompt not in self._kept:
                cache: Any = DynamicCache()
                ids = torch.tensor([prompt], device=self.device)
                with torch.no_grad():
                    self._model(input_ids=ids, past_key_values=cache, logits_to_keep=1)
                layers: Any = cache.layers
                self._kept[prompt] = (
                    tuple(layer.keys[0] for layer in layers),
                    tuple(layer.values[0] for layer in layers),
                )
            frozen.append(FrozenPrompt(text, *self._kept[prompt]))
        return frozen

    def nll(
        self, texts: Sequence[FrozenPrompt], rows: Sequence[torch.Tensor], scale: float = 1.0
    ) -> torch.Tensor:
        """Return the mean negative log-likelihood of each reply's tokens, (n_texts,).

        Args:
            rows: one for each layer, (n_head_kv, n_cells, head_dim): added to the values.
            scale: what they are multiplied by.
        """
        import torch
        from transformers import DynamicCache

        pad = torch.nn.functional.pad
        lengths = [text.text.begin - 1 for text in texts]
        longest, n_new = (
            max(lengths),
            max(len(t.text.tokens) - n for t, n in zip(texts, lengths, strict=True)),
        )
        cache = DynamicCache()
        for layer, row in enumerate(rows):
            # Padded in front, so that the edited cells are the last ones of every text.
            keys, values = (
                torch.stack([pad(held, (0, 0, longest - held.shape[1], 0)) for held in parts])
                for parts in ([t.keys[layer] for t in texts], [t.values[layer] for t in texts])
            )
            moved = values + pad(scale * row, (0, 0, longest - self._n_cells, 0)).to(values.dtype)
            cache.update(keys, moved, layer)
        mask = torch.ones(len(texts), longest + n_new, dtype=torch.long, device=self.device)
        ids = torch.zeros(len(texts), n_new, dtype=torch.long, device=self.device)
        targets = torch.full((len(texts), n_new), -100, device=self.device)
        for i, (text, n) in enumerate(zip(texts, lengths, strict=True)):
            mask[i, : longest - n] = 0
            rest = torch.tensor(text.text.tokens[n:], device=self.device)
            ids[i, : len(rest)] = rest
            targets[i, : len(rest) - 1] = rest[1:]
        positions = torch.tensor(lengths, device=self.device)[:, None] + torch.arange(
            n_new, device=self.device
        )
        logits = self._model(
            input_ids=ids, past_key_values=cache, attention_mask=mask, position_ids=positions
        ).logits
        losses = torch.nn.functional.cross_entropy(
            logits.float().transpose(1, 2), targets, ignore_index=-100, reduction="none"
        )
        summed: torch.Tensor = losses.sum(1) / (targets != -100).sum(1)
        return summed
