"""Write tests/golden/tools/: files of other tools, and what those tools' own steering does.

    python tests/golden/make_tools.py FOLDER

FOLDER holds the unpacked wheels of repeng 0.4.0, saklas 5.3.0 and steering-vectors 0.12.2, one
folder each; beside them torch, transformers, safetensors, scikit-learn and gguf are needed. The
tiny llama of the tests is steered in transformers: by repeng's and steering-vectors' own code, for
the others by adding to block outputs as their code does. Files of EasySteer, jukofyork's generator,
cvector-generator and persona_vectors are written by the calls their writers make, with the same
library; those programs are on no package index.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

HERE = Path(__file__).parent
TOOLS = HERE / "tools"
sys.path.insert(0, str(HERE.parent))

from tiny_models import TinyModel, build_tiny  # noqa: E402

PROMPT_SEED = 5
SCALE = 0.5


def rows(seed: int, n_layer: int = 4, n_embd: int = 64) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return random directions of lengths 0.5, 1, 2 and 4, float32 (n_layer, n_embd)."""
    found = np.random.default_rng(seed).standard_normal((n_layer, n_embd))
    found *= (0.5 * 2.0 ** np.arange(n_layer) / np.linalg.norm(found, axis=1))[:, None]
    return found.astype(np.float32)


def write_gguf(
    path: Path,
    hint: str,
    directions: dict[int, Any],
    *,
    n_layers: int | None = None,
    method: str | None = None,
    count_is_signed: bool = False,
) -> None:
    """Make the calls that the tools' writers make."""
    writer = gguf.GGUFWriter(path, "controlvector")
    writer.add_string("controlvector.model_hint", hint)
    if method is not None:
        writer.add_string("controlvector.method", method)
    add = writer.add_int32 if count_is_signed else writer.add_uint32
    add("controlvector.layer_count", len(directions) if n_layers is None else n_layers)
    if method is not None:
        writer.add_float32("controlvector.normalize", 1.0)
    for layer, direction in directions.items():
        writer.add_tensor(f"direction.{layer}", direction)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    wheels = Path(sys.argv[1])
    for name in ("repeng", "saklas", "steering_vectors"):
        sys.path.insert(0, str(wheels / name))
    np.float_ = np.float64  # type: ignore[attr-defined]  # repeng is older than NumPy 2
    TOOLS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        model = build_tiny("llama", Path(folder) / "llama.gguf")
        tokens = model.random_tokens(16, seed=PROMPT_SEED)
        changes = {"tokens": np.array(tokens, np.int32)}
        plain = logits(model.transformers_model(), tokens)
        for name, make in CASES.items():
            changes[name] = make(model, tokens) - plain
        np.savez_compressed(TOOLS / "logit_changes.npz", **changes)


def logits(model: Any, tokens: list[int]) -> Any:
    """Return transformers' logits after the last token, float32 (n_vocab,)."""
    with torch.no_grad():
        return model(torch.tensor([tokens]), use_cache=False).logits[0, -1].numpy().copy()


def added(model: TinyModel, tokens: list[int], steer: dict[int, Any]) -> Any:
    """Return the logits with rows added to the outputs of blocks, in transformers."""
    scaled = {block: SCALE * row for block, row in steer.items()}
    return model.reference_logits(tokens, scaled)[-1]


def repeng(model: TinyModel, tokens: list[int]) -> Any:
    from repeng import ControlModel, ControlVector

    blocks = [3, 2, 1]
    vector = ControlVector("llama", {block: rows(1)[block] for block in blocks})
    vector.export_gguf(TOOLS / "repeng.gguf")
    wrapped = ControlModel(model.transformers_model(), blocks)
    wrapped.set_control(vector, SCALE)
    found = logits(wrapped, tokens)
    wrapped.reset()
    wrapped.unwrap()
    return found


def easysteer(model: TinyModel, tokens: list[int]) -> Any:
    directions = dict(enumerate(rows(2)))
    write_gguf(TOOLS / "easysteer.gguf", "unknown", directions, method="DiffMean")
    return added(model, tokens, directions)


def cvector_generator(model: TinyModel, tokens: list[int]) -> Any:
    """Measured after blocks 0 to 2, written as 1 to 3, and added by llama.cpp to blocks 1 to 3."""
    directions = {block: rows(3)[block - 1] for block in (1, 2, 3)}
    write_gguf(TOOLS / "cvector-generator.gguf", "llama", directions, count_is_signed=True)
    return added(model, tokens, directions)


def jukofyork(model: TinyModel, tokens: list[int]) -> Any:
    """Two files, one mood; its last block has none."""
    steer = {}
    for seed, name in ((4, "debias"), (5, "ornate")):
        directions = {block: rows(seed)[block] for block in (1, 2)}
        path = TOOLS / f"tiny-llama-language__{name}.gguf"
        write_gguf(path, "llama", directions, n_layers=model.n_layer)
        steer = {block: steer.get(block, 0) + row for block, row in directions.items()}
    return added(model, tokens, steer)


def saklas_flat(model: TinyModel, tokens: list[int]) -> Any:
    from saklas.io.gguf_io import write_gguf_profile

    profile = {block: torch.from_numpy(rows(6)[block]) for block in (0, 1, 3)}
    write_gguf_profile(profile, TOOLS / "saklas.gguf", model_hint="llama")
    return added(model, tokens, {block: row.numpy() for block, row in profile.items()})


def saklas_pack(model: TinyModel, tokens: list[int]) -> Any:
    from saklas.core.profile import save_profile
    from saklas.io.paths import safe_model_id

    folder = TOOLS / "saklas-pack"
    folder.mkdir(exist_ok=True)
    profile = {block: torch.from_numpy(rows(7)[block]) for block in (1, 2)}
    path = folder / f"{safe_model_id('example/tiny-llama')}.safetensors"
    save_profile(profile, path, {"method": "profile"})
    shutil.rmtree(folder / ".locks", ignore_errors=True)
    files = {
        entry.name: hashlib.sha256(entry.read_bytes()).hexdigest()
        for entry in sorted(folder.iterdir())
        if entry.suffix in (".safetensors", ".json") and entry.name != "pack.json"
    }
    manifest = {
        "name": "angry.calm",
        "description": "a test",
        "format_version": 2,
        "version": "1.0.0",
        "license": "Apache-2.0",
        "tags": ["affect"],
        "recommended_alpha": 0.5,
        "source": "local",
        "files": files,
    }
    (folder / "pack.json").write_text(json.dumps(manifest, indent=2) + "\n")
    return added(model, tokens, {block: row.numpy() for block, row in profile.items()})


def steering_vectors(model: TinyModel, tokens: list[int]) -> Any:
    from steering_vectors import SteeringVector

    vector = SteeringVector({block: torch.from_numpy(rows(8)[block]) for block in (0, 2)})
    torch.save(vector.layer_activations, TOOLS / "steering-vectors.pt")
    with vector.apply(model.transformers_model(), multiplier=SCALE):
        return logits(model.transformers_model(), tokens)


def persona_vectors(model: TinyModel, tokens: list[int]) -> Any:
    """A row for each hidden state; row 3 is given to the steerer of block 2."""
    stack = torch.from_numpy(rows(9, n_layer=5))
    torch.save(stack, TOOLS / "calm_response_avg_diff.pt")
    return added(model, tokens, {2: stack[3].numpy()})


CASES = {
    "repeng": repeng,
    "EasySteer": easysteer,
    "cvector-generator": cvector_generator,
    "jukofyork": jukofyork,
    "saklas, GGUF": saklas_flat,
    "saklas, pack": saklas_pack,
    "steering-vectors": steering_vectors,
    "persona_vectors": persona_vectors,
}


if __name__ == "__main__":
    main()
