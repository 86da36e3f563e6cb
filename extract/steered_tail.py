"""The blocks behind the first steered one, run again and again with a vector that is learned.

A text's hidden states up to the first steered block do not depend on the vector, so they are
computed once. Knows torch and transformers' blocks; nothing of emotions or of how a vector is
learned.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pyemo.extract.block_recorder import BlockRecorder

if TYPE_CHECKING:
    import torch

_FREEZE_TOGETHER = 8
_NO_TARGET = -1


@dataclass(frozen=True)
class ReplyTokens:
    """A prompt and a reply as tokens; the reply begins at ``begin``, which is at least 1."""

    tokens: tuple[int, ...]
    begin: int


@dataclass(frozen=True, eq=False)
class Frozen:
    """A text whose first blocks are computed.

    Attributes:
        text: its tokens.
        states: (n_tokens, n_embd), the output of the first steered block, unsteered.
        means: float32 (n_steered, n_embd), mean output of each steered block over the reply.
    """

    text: ReplyTokens
    states: torch.Tensor
    means: npt.NDArray[np.float32]


class SteeredTail:
    """A model in evaluation mode whose blocks ``layers`` are steered.

    Args:
        model: a causal language model of transformers; its weights are frozen here.
        layers: consecutive layers whose outputs a row is added to; not the last block.
    """

    def __init__(self, model: Any, layers: range) -> None:
        self._model = model.requires_grad_(False)
        self._recorder = BlockRecorder(model)
        self._layers = layers
        self.n_embd = self._recorder.n_embd
        self._kept: dict[tuple[ReplyTokens, ...], list[Frozen]] = {}

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        device: torch.device = self._model.device
        return device

    def freeze(self, texts: Sequence[ReplyTokens]) -> list[Frozen]:
        """Return the texts with what does not depend on the vector, in their order.

        What is computed together is kept: plain replies of several voices are computed once, and
        :meth:`keep_only` frees the rest. A row of a batch depends in its last bits on the batch, so
        a text that was computed in another batch is computed again: what is returned depends on
        ``texts`` alone.
        """
        ordered = sorted(set(texts), key=lambda text: (len(text.tokens), text.tokens, text.begin))
        found: dict[ReplyTokens, Frozen] = {}
        for first in range(0, len(ordered), _FREEZE_TOGETHER):
            batch = tuple(ordered[first : first + _FREEZE_TOGETHER])
            if batch not in self._kept:
                self._kept[batch] = self._frozen(batch)
            found.update(zip(batch, self._kept[batch], strict=True))
        return [found[text] for text in texts]

    def keep_only(self, texts: Collection[ReplyTokens]) -> None:
        """Free what was computed, but for batches of ``texts`` alone: what a next voice shares."""
        shared = set(texts)
        self._kept = {batch: held for batch, held in self._kept.items() if shared.issuperset(batch)}

    def _frozen(self, batch: Sequence[ReplyTokens]) -> list[Frozen]:
        import torch

        outputs: list[torch.Tensor] = [torch.empty(0)] * len(self._layers)

        def take(index: int, output: torch.Tensor) -> None:
            outputs[index] = output

        with torch.no_grad(), self._recorder.recording(self._layers, take):
            self._model.base_model(input_ids=self._padded(batch), use_cache=False)
        found = []
        for row, text in enumerate(batch):
            n_tokens = len(text.tokens)
            means = [o[row, text.begin : n_tokens].float().mean(0) for o in outputs]
            states = outputs[0][row, :n_tokens].clone()
            found.append(Frozen(text, states, torch.stack(means).cpu().numpy()))
        return found

    def nll(
        self, texts: Sequence[Frozen], scales: torch.Tensor, vectors: torch.Tensor
    ) -> torch.Tensor:
        """Return the mean negative log-likelihood of each reply's tokens, (n_texts,).

        Args:
            scales: (n_texts,), what ``vectors`` are multiplied by for each text.
            vectors: (n_steered, n_embd), added to the steered blocks' outputs at all positions.
        """
        import torch

        longest = max(len(text.text.tokens) for text in texts)
        states = torch.stack(
            [torch.nn.functional.pad(t.states, (0, 0, 0, longest - len(t.states))) for t in texts]
        )
        first = min(text.text.begin for text in texts) - 1
        kept = torch.arange(first, longest - 1, device=self.device)
        targets = torch.full((len(texts), len(kept)), _NO_TARGET, device=self.device)
        for row, text in enumerate(texts):
            begin, tokens = text.text.begin, text.text.tokens
            own = torch.tensor(tokens[begin:], device=self.device)
            targets[row, begin - first - 1 : len(tokens) - first - 1] = own
        wanted = targets != _NO_TARGET
        moves = scales[:, None, None, None] * vectors[None, :, None, :]
        with self._steered(states, moves.to(states.dtype)), self._predicting(wanted):
            logits = self._model(
                inputs_embeds=torch.zeros_like(states), use_cache=False, logits_to_keep=kept
            ).logits
        losses = torch.nn.functional.cross_entropy(
            logits[0].float(), targets[wanted], reduction="none"
        )
        summed = torch.zeros(len(texts), device=self.device)
        summed = summed.index_add(0, wanted.nonzero()[:, 0], losses)
        mean: torch.Tensor = summed / wanted.sum(1)
        return mean

    def _padded(self, texts: Sequence[ReplyTokens]) -> torch.Tensor:
        """Return token rows, padded behind: a causal model's earlier positions do not see it."""
        import torch

        longest = max(len(text.tokens) for text in texts)
        rows = [[*text.tokens, *[0] * (longest - len(text.tokens))] for text in texts]
        return torch.tensor(rows, device=self.device)

    @contextlib.contextmanager
    def _predicting(self, wanted: torch.Tensor) -> Iterator[None]:
        """Let the model's head compute logits at ``wanted`` (n_texts, n_kept) alone, as one row.

        A large vocabulary's logits are most of a step's memory, and half of its time.
        """

        def select(_module: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
            return (given[0][wanted][None], *given[1:])

        handle = self._model.get_output_embeddings().register_forward_pre_hook(select)
        try:
            yield
        finally:
            handle.remove()

    @contextlib.contextmanager
    def _steered(self, states: torch.Tensor, moves: torch.Tensor) -> Iterator[None]:
        """Let the first steered block give ``states``, and add ``moves`` to all steered ones."""
        with contextlib.ExitStack() as undo:
            for layer in range(self._layers.start + 1):
                given = states + moves[:, 0] if layer == self._layers.start else None
                block = self._recorder.blocks[layer]
                undo.callback(setattr, block, "forward", block.forward)
                block.forward = _passing(given)
            for index, layer in enumerate(self._layers):
                if index:
                    handle = self._recorder.blocks[layer].register_forward_hook(
                        _adding(moves[:, index])
                    )
                    undo.callback(handle.remove)
            yield


def _passing(given: torch.Tensor | None) -> Any:
    """Return a block's stand-in that hands on ``given``, or what it was handed."""

    def forward(hidden_states: torch.Tensor, *_args: Any, **_named: Any) -> torch.Tensor:
        return hidden_states if given is None else given

    return forward


def _adding(move: torch.Tensor) -> Any:
    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (output[0] + move, *output[1:])
        return output + move

    return hook
