"""The peer that steers by forward hooks: transformers in bfloat16, `steering-vectors`.

Owns how transformers is loaded, steered and made to decode; measures nothing. It imports nothing of
pyemo where it decodes, so that a process of its own holds the peer only:

    python bench/transformers_peer.py FOLDER|FILE.gguf WORK.npz

decodes once and prints the peak of its memory in bytes. The library is used where it is installed
(pip install steering-vectors), else the forward hooks that it would register.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

HAS_LIBRARY = importlib.util.find_spec("steering_vectors") is not None
LIBRARY = "steering-vectors" if HAS_LIBRARY else "forward hooks"


@dataclass(frozen=True)
class Work:
    """What is decoded: ``n_tokens`` after a prompt, greedily, with a row added to block outputs.

    Attributes:
        layers: the blocks; ``rows`` float32 (n_layers, n_embd), as long as they are added.
    """

    prompt: list[int]
    layers: list[int]
    rows: npt.NDArray[np.float32]
    n_tokens: int
    n_threads: int

    def save(self, path: Path) -> None:
        """Write it for another process."""
        np.savez(
            path, prompt=self.prompt, layers=self.layers, rows=self.rows,
            numbers=[self.n_tokens, self.n_threads],
        )  # fmt: skip

    @classmethod
    def load(cls, path: Path) -> Work:
        """Read what :meth:`save` wrote."""
        with np.load(path) as found:
            return cls(
                found["prompt"].tolist(), found["layers"].tolist(), found["rows"],
                *found["numbers"].tolist(),
            )  # fmt: skip


def convert(model: str, folder: Path) -> None:
    """Write a model of the catalog as bfloat16 safetensors, from which transformers loads it."""
    from pyemo.extract.transformers_loading import load

    loaded = load(model, "cpu", "bfloat16", None).model
    # The weights are dequantized, but transformers remembers that they came from GGUF, and would
    # not save them.
    loaded.hf_quantizer = None
    del loaded.config.quantization_config
    loaded.save_pretrained(folder)


def decoding(source: Path, work: Work) -> Callable[[], None]:
    """A run that decodes from the end of the prompt each time, which is read once.

    Args:
        source: a folder with safetensors, or a GGUF file, which takes more memory to load.
    """
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(work.n_threads)
    is_gguf = source.suffix == ".gguf"
    where = {"gguf_file": source.name} if is_gguf else {}
    folder = source.parent if is_gguf else source
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **where).eval()
    steer(model, work)
    cache = DynamicCache(config=model.config)
    prompt = torch.tensor([work.prompt])

    # A loop of its own: generate() prepares each token anew, and is slower.
    @torch.inference_mode()
    def forward(ids: Any) -> Any:
        found = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return found.logits[:, -1].argmax(dim=-1, keepdim=True)

    first = forward(prompt)
    n_prompt = cache.get_seq_length()

    def run() -> None:
        cache.crop(n_prompt - cache.get_seq_length())
        token = first
        for _ in range(work.n_tokens):
            token = forward(token)
            token.item()  # the caller sees each token, as with the other sides

    return run


def steer(model: Any, work: Work) -> None:
    """Register what adds the rows to the blocks' outputs."""
    import torch

    rows = {
        layer: torch.from_numpy(row.copy()).to(torch.bfloat16)
        for layer, row in zip(work.layers, work.rows, strict=True)
    }
    if HAS_LIBRARY:
        from steering_vectors import SteeringVector

        SteeringVector(rows, "decoder_block").patch_activations(model)
        return

    def hook(row: Any) -> Any:
        def add(_module: Any, _inputs: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (output[0] + row, *output[1:])
            return output + row

        return add

    for layer, row in rows.items():
        model.model.layers[layer].register_forward_hook(hook(row))


def main() -> None:
    """Decode once in this process; print its peak."""
    decoding(Path(sys.argv[1]), Work.load(Path(sys.argv[2])))()
    status = Path("/proc/self/status").read_text().splitlines()
    (peak,) = (line for line in status if line.startswith("VmHWM"))
    print(int(peak.split()[1]) * 1024)


if __name__ == "__main__":
    main()
