"""Hidden states from transformers: on a GPU, or as a reference for the engine.

Without torch this module can be imported; opening a back end then says what to install.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pyemo.choices import DType
from pyemo.engine.engine import Engine
from pyemo.engine.sampling import SamplerParams
from pyemo.errors import ContextFullError, InputError, ModelLoadError
from pyemo.extract.backend import Passage, Written
from pyemo.extract.block_recorder import BlockRecorder
from pyemo.extract.engine_backend import EngineBackend
from pyemo.extract.numpy_sampler import draw, most_likely, penalized
from pyemo.extract.transformers_loading import DeviceMap, Loaded, load
from pyemo.texts import sources

if TYPE_CHECKING:
    import torch

# A model whose block outputs at a text's tokens are not at least this near llama.cpp's (mean cosine
# of a block) is computed under a wrong configuration: rounding alone leaves 0.98 even in 4 bits.
_LEAST_COSINE = 0.9
_N_COMPARED = 48


class TransformersBackend:
    """A transformers model as a back end.

    ```
    backend = TransformersBackend.load("smollm2-135m-instruct")  # a GGUF file, dequantized
    backend = TransformersBackend.load("/models/Llama-3.2-1B", device="cuda", dtype="bfloat16")
    ```

    Texts are computed in batches of like length. A story depends on its prompt and seed alone, up
    to the rounding of the batch it is computed in.

    Args:
        loaded: see :meth:`load`.
        batch_size: texts of a batch at most.
        batch_tokens: tokens of a batch at most, padding and the replies to come included; at least
            one text.
    """

    name = "transformers"

    def __init__(self, loaded: Loaded, *, batch_size: int = 32, batch_tokens: int = 16384) -> None:
        if batch_size < 1 or batch_tokens < 1:
            raise InputError(
                f"batch_size = {batch_size} and batch_tokens = {batch_tokens} must be at least 1"
            )
        self.source = loaded.source
        self._model = loaded.model
        self._words = loaded.words
        self._gguf = loaded.gguf
        self._batch_size = batch_size
        self._batch_tokens = batch_tokens
        self._recorder = BlockRecorder(loaded.model)
        self._recorder.prove(lambda: self._forward([(0, 0)]))

    @classmethod
    def load(
        cls,
        name: str | os.PathLike[str],
        *,
        device: str = "auto",
        dtype: DType = "auto",
        device_map: DeviceMap | None = None,
        batch_size: int = 32,
        batch_tokens: int = 16384,
    ) -> TransformersBackend:
        """Load a model: a GGUF file (dequantized), a Hugging Face folder, a repository, a name of
        the catalog.

        A GGUF file's model is compared with llama.cpp's computation of the same file on a short
        text, since transformers may read its header differently. Its tokens are llama.cpp's.

        Args:
            device: "auto" (CUDA, MPS, CPU, in this order), or torch's name of one.
            dtype: "auto" is float32, and bfloat16 on a CUDA device that has it.
            device_map: handed to transformers, which then places the model itself; ``device`` is
                not used.
        Raises:
            MissingExtraError: torch or transformers is not installed.
            ModelNotFoundError: no such file, folder or name.
            ModelLoadError: an architecture that transformers cannot load, damaged weights, weights
                in another form than safetensors or GGUF, or a GGUF file that transformers computes
                otherwise.
            SteeringUnsupportedError: a model whose blocks cannot be read.
            InputError: the device is not there; an unknown dtype.
        """
        loaded = load(name, device, dtype, device_map)
        backend = cls(loaded, batch_size=batch_size, batch_tokens=batch_tokens)
        backend.compare_with_file()
        return backend

    def compare_with_file(self) -> None:
        """Do :meth:`compare` with llama.cpp's computation of the file the model was made from.

        Raises:
            ModelLoadError: see :meth:`compare`.
        """
        if self._gguf is not None:
            with Engine(self._gguf, n_ctx=2 * _N_COMPARED, n_threads=1) as engine:
                self.compare(EngineBackend(engine))

    def compare(self, engine: EngineBackend) -> None:
        """Check that block outputs on a neutral text are the engine's, but for rounding.

        Raises:
            ModelLoadError: they are not.
        """
        text = " ".join(sources.neutral_texts())
        tokens = tuple(self.text_tokens(text)[:_N_COMPARED])
        # The first token's state is far from all others' in many models, and rounded differently.
        passages = [Passage(tokens, 1, len(tokens))]
        layers = range(self.source.n_layer)
        ours, theirs = (
            rows.read_tokens(passages, layers)[0].astype(np.float64) for rows in (self, engine)
        )
        lengths = np.linalg.norm(ours, axis=-1) * np.linalg.norm(theirs, axis=-1)
        cosines = ((ours * theirs).sum(axis=-1) / np.maximum(lengths, 1e-30)).mean(axis=0)
        layer = int(np.argmin(cosines))
        if not cosines[layer] >= _LEAST_COSINE:
            raise ModelLoadError(
                f"transformers computes {self.source.name} otherwise than llama.cpp (mean cosine "
                f"{cosines[layer]:.2f} after block {layer}, at least {_LEAST_COSINE} expected): "
                "it misreads the file's header; use the engine back end"
            )

    def prompt_tokens(self, prompt: str) -> list[int]:
        """Return the tokens a reply to ``prompt`` starts from, in the chat template if there is
        one."""
        return self._words.prompt_tokens(prompt)

    def text_tokens(self, text: str) -> list[int]:
        """Return the tokens of a text as it is, with BOS where the model expects one."""
        return self._words.text_tokens(text)

    # --- writing ---

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        samplers: Sequence[SamplerParams],
        max_tokens: int,
        on_written: Callable[[int, Written], None],
        skip: int | None = None,
        layers: Sequence[int] = (),
    ) -> None:
        """Write a reply to each prompt, batch by batch; one that has ended leaves its batch.

        With ``skip``, hidden states from the reply's token ``skip`` on are pooled while it is
        written. The reply's last token is never computed, so it counts neither as text nor as read:
        it is the end-of-generation token, or the one that max_tokens cuts off.

        Raises:
            ContextFullError: a prompt and its reply are longer than the model's positions.
        """
        import torch

        lengths = [len(prompt) + max_tokens for prompt in prompts]
        self._require_room(max(lengths, default=0))
        with torch.inference_mode():
            for indices in self._batches(lengths):
                batch = _Batch([_Text(i, list(prompts[i]), len(prompts[i])) for i in indices])
                with contextlib.ExitStack() as hooks:
                    pool = None
                    if skip is not None:
                        pool = _Pool(batch, skip, len(layers), self.source.n_embd)
                        hooks.enter_context(self._recorder.recording(layers, pool.take))
                    self._write_batch(batch, samplers, max_tokens, on_written, pool)

    def _write_batch(
        self,
        batch: _Batch,
        samplers: Sequence[SamplerParams],
        max_tokens: int,
        on_written: Callable[[int, Written], None],
        pool: _Pool | None,
    ) -> None:
        import torch

        longest = max(text.n_prompt for text in batch.texts)
        rows = [[0] * (longest - len(text.tokens)) + text.tokens for text in batch.texts]
        mask = torch.tensor(
            [[int(i >= longest - text.n_prompt) for i in range(longest)] for text in batch.texts]
        )
        mask = mask.to(self._device)
        tokens, positions = self._tensor(rows), (mask.cumsum(-1) - 1).clamp(min=0)
        cache: Any = None
        while batch.texts:
            out = self._model(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache = out.past_key_values
            going = []
            for row, token in enumerate(self._draw(out.logits[:, -1].float(), batch, samplers)):
                text = batch.texts[row]
                ended = self._words.is_end(token)
                if ended or text.n_reply == max_tokens:
                    states = None if pool is None else pool.mean(row)
                    reply = tuple(text.tokens[text.n_prompt :])
                    on_written(text.index, Written(reply, self._words.text(reply), ended, states))
                else:
                    text.tokens.append(token)
                    going.append(row)
            if len(going) < len(batch.texts):
                batch.texts = [batch.texts[row] for row in going]
                if not going:
                    break
                keep = torch.tensor(going, dtype=torch.long, device=self._device)
                mask, positions = mask[keep], positions[keep]
                cache.batch_select_indices(keep)
                if pool is not None:
                    pool.keep(keep)
            tokens = self._tensor([[text.tokens[-1]] for text in batch.texts])
            mask = torch.cat([mask, mask.new_ones((len(batch.texts), 1))], dim=1)
            positions = positions[:, -1:] + 1
            if pool is not None:
                pool.is_reply = True

    def _draw(
        self, logits: torch.Tensor, batch: _Batch, samplers: Sequence[SamplerParams]
    ) -> Iterator[int]:
        """Yield each text's next token."""
        chosen = [samplers[text.index] for text in batch.texts]
        if any(sampler.stay_in_script for sampler in chosen):
            raise InputError("stay_in_script is the engine's; the transformers back end has none")
        is_plain = all(
            s.repeat_penalty == 1
            and s.dry_multiplier == s.frequency_penalty == s.presence_penalty == 0
            for s in chosen
        )
        if is_plain and all(s.temperature == 0 or s.top_k > 0 for s in chosen):
            k = max(1 if s.temperature == 0 else s.top_k for s in chosen)
            values, ids = logits.topk(min(k, logits.shape[-1]))
            top = zip(ids.cpu().numpy(), values.cpu().numpy(), strict=True)
            candidates = [
                (i[: s.top_k or None], v[: s.top_k or None])
                for s, (i, v) in zip(chosen, top, strict=True)
            ]
        else:
            every = logits.cpu().numpy()
            candidates = [
                most_likely(penalized(row, text.tokens, s), s)
                for s, text, row in zip(chosen, batch.texts, every, strict=True)
            ]
        for sampler, text, (ids, values) in zip(chosen, batch.texts, candidates, strict=True):
            yield draw(ids, values, sampler, len(text.tokens))

    # --- reading ---

    def read(self, passages: Sequence[Passage], layers: Sequence[int]) -> npt.NDArray[np.float32]:
        """Return the mean hidden states of each passage, float32 (n_passages, n_layers, n_embd)."""
        import torch

        out = np.empty((len(passages), len(layers), self.source.n_embd), np.float32)
        for indices in self._read_batches(passages, layers):
            ends = [passages[i].end for i in indices]
            begins = [passages[i].begin for i in indices]
            weights = torch.zeros((len(indices), max(ends)), device=self._device)
            for row, (begin, end) in enumerate(zip(begins, ends, strict=True)):
                weights[row, begin:end] = 1 / (end - begin)

            def take(
                index: int,
                states: torch.Tensor,
                rows: list[int] = indices,
                w: torch.Tensor = weights,
            ) -> None:
                mean = torch.einsum("bt,bte->be", w.to(states.device), states.float())
                out[rows, index] = mean.cpu().numpy()

            with self._recorder.recording(layers, take):
                self._forward([passages[i].tokens[: passages[i].end] for i in indices])
        return out

    def read_tokens(
        self, passages: Sequence[Passage], layers: Sequence[int]
    ) -> list[npt.NDArray[np.float32]]:
        """Return every hidden state of each passage, float32 (end - begin, n_layers, n_embd)."""
        out = [
            np.empty((p.end - p.begin, len(layers), self.source.n_embd), np.float32)
            for p in passages
        ]
        for indices in self._read_batches(passages, layers):

            def take(index: int, states: torch.Tensor, rows: list[int] = indices) -> None:
                for row, i in enumerate(rows):
                    part = states[row, passages[i].begin : passages[i].end]
                    out[i][:, index] = part.float().cpu().numpy()

            with self._recorder.recording(layers, take):
                self._forward([passages[i].tokens[: passages[i].end] for i in indices])
        return out

    def _read_batches(
        self, passages: Sequence[Passage], layers: Sequence[int]
    ) -> Iterator[list[int]]:
        for i, passage in enumerate(passages):
            if not 0 <= passage.begin < passage.end <= len(passage.tokens):
                raise InputError(
                    f"text {i}: positions {passage.begin}:{passage.end} are outside "
                    f"0:{len(passage.tokens)}, or none"
                )
        if len(layers) == 0 or not set(layers) <= set(range(self.source.n_layer)):
            raise InputError(f"layers {list(layers)}: name some of 0 to {self.source.n_layer - 1}")
        lengths = [passage.end for passage in passages]
        self._require_room(max(lengths, default=0))
        return self._batches(lengths)

    # --- both ---

    @property
    def _device(self) -> torch.device:
        """Where the tokens go; transformers moves the rest where a device map put it."""
        return self._model.get_input_embeddings().weight.device  # type: ignore[no-any-return]

    def _tensor(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        import torch

        return torch.tensor(rows, dtype=torch.long, device=self._device)

    def _forward(self, texts: Sequence[Sequence[int]]) -> None:
        """Run the texts through the blocks.

        Shorter ones are padded at their ends with their own last token: no token sees what comes
        after it, so no mask is needed and positions are right as they are.
        """
        import torch

        longest = max(map(len, texts))
        rows = [[*text, *[text[-1]] * (longest - len(text))] for text in texts]
        with torch.inference_mode():
            self._model.base_model(input_ids=self._tensor(rows), use_cache=False)

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Yield indices in batches of like length, the longest first: memory that suffices once
        suffices."""
        batch: list[int] = []
        for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
            size = (len(batch) + 1) * lengths[batch[0] if batch else i]
            if batch and (len(batch) == self._batch_size or size > self._batch_tokens):
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    def _require_room(self, n_tokens: int) -> None:
        room = getattr(self._recorder.config, "max_position_embeddings", None)
        if room is not None and n_tokens > room:
            raise ContextFullError(
                f"a text, or a prompt and its story, may take {n_tokens} tokens, but "
                f"{self.source.name} has {room} positions; shorten it"
            )


@dataclass
class _Text:
    """A prompt and the reply so far."""

    index: int
    tokens: list[int]
    n_prompt: int

    @property
    def n_reply(self) -> int:
        return len(self.tokens) - self.n_prompt


@dataclass
class _Batch:
    """Texts that are written in one batch, in the order of the batch's rows."""

    texts: list[_Text] = field(default_factory=list)


class _Pool:
    """Sums of the hidden states of the replies of a batch, float32 (n_texts, n_layers, n_embd)."""

    def __init__(self, batch: _Batch, skip: int, n_layers: int, n_embd: int) -> None:
        import torch

        self.is_reply = False  # the first pass is over the prompts
        self._batch = batch
        self._skip = skip
        self._sums = [torch.zeros((len(batch.texts), n_embd)) for _ in range(n_layers)]

    def take(self, index: int, states: torch.Tensor) -> None:
        """Add the newest token's output of a layer."""
        # All replies of a batch have one length, as those that have ended are no longer in it.
        if self.is_reply and self._batch.texts[0].n_reply > self._skip:
            self._sums[index] = self._sums[index].to(states.device) + states[:, -1].float()

    def keep(self, rows: torch.Tensor) -> None:
        """Forget the rows that have left the batch."""
        self._sums = [sums[rows.to(sums.device)] for sums in self._sums]

    def mean(self, row: int) -> npt.NDArray[np.float32] | None:
        """Return a text's mean, or None if it was not longer than what is skipped."""
        n = self._batch.texts[row].n_reply - self._skip
        if n < 1:
            return None
        return np.stack([(sums[row] / n).cpu().numpy() for sums in self._sums])
