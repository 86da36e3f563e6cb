"""The spellings of a model on Hugging Face, from llama.cpp's ``-hf`` to a browser's address line.

Owns what a text means; looks at no file and no network. A name that belongs to another program gets
a sentence about what to give instead.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import parse_qs, unquote

from pyemo.errors import ModelNotFoundError

_LONGEST_SHOWN = 120
# What may stand before org/repo and says that it is one.
_PREFIX = re.compile(
    r"(?:hf://|hf:|huggingface:|(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/)(?:models/)?",
    re.IGNORECASE,
)
_REPO = r"(?P<repo>\w[\w.-]*/\w[\w.-]*)"
_REFERENCE = re.compile(
    _REPO + r"(?:@(?P<at>\w[\w.-]*))?(?::(?P<rest>[^:\\]+))?",
    re.ASCII,
)
# The pages of a repository's files; a revision with a slash in it is escaped there.
_PAGE = re.compile(_REPO + r"/(?:blob|resolve|raw|tree)/(?P<at>[^/]+)(?:/(?P<rest>.+))?", re.ASCII)
_PATH = re.compile(_REPO + r"(?:@(?P<at>[^/:]+))?/(?P<rest>.+)", re.ASCII)
_TAG = re.compile(r"\w[\w.-]*", re.ASCII)
_QUANTIZATION = re.compile(r"(?:UD-)?(?:I?Q\d|TQ\d|B?F16|FP16|F32|MXFP4|NVFP4)\w*", re.IGNORECASE)
_OLLAMA = re.compile(
    r"(?:ollama\b.*|(?:registry\.)?ollama\.\w+/.*|[a-z][\w.-]*:[\w.-]*)", re.IGNORECASE
)
_DRIVE = re.compile(r"[a-z]:(?:[\\/].*)?", re.IGNORECASE)


class HubFile(NamedTuple):
    """What a text names on Hugging Face.

    Attributes:
        repo: ``org/repo``.
        file: a file's path in it; None where the text leaves the choice open.
        tag: a word that the file's name must have, such as ``"Q4_K_M"``; None for any.
        revision: a branch, tag or commit; None for the main one.
    """

    repo: str
    file: str | None = None
    tag: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        inside = self.file or self.tag
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.repo}{revision}:{inside}" if inside else f"{self.repo}{revision}"


def parse(text: str) -> HubFile | None:
    """Return what a text names on Hugging Face; None where it is a path or any other text.

    ``org/repo``, ``org/repo:Q4_K_M``, ``org/repo:file.gguf``, ``org/repo@revision``; and after
    ``hf:``, ``hf://``, ``hf.co/`` or ``https://huggingface.co/`` also ``org/repo/file.gguf`` and
    the addresses of a repository's pages.

    Raises:
        ModelNotFoundError: it is of Hugging Face but cannot be a model.
    """
    prefix = _PREFIX.match(text)
    if prefix is None:
        match = _REFERENCE.fullmatch(text)
        if match is None or match["repo"].lower().endswith(".gguf"):  # "folder/model.gguf"
            return None
        return _hub_file(text, match, match["rest"])
    address, _, query = text[prefix.end() :].partition("#")[0].partition("?")
    address = address.strip("/")
    kind = address.partition("/")[0].lower()
    if kind in ("datasets", "spaces", "collections", "docs"):
        raise ModelNotFoundError(
            f"{_shown(text)} is not a model's repository but one of Hugging Face's {kind}; give "
            "the model's, as org/repo"
        )
    for form in (_REFERENCE, _PAGE, _PATH):
        match = form.fullmatch(address)
        if match is not None:
            # The page of a repository shows one of its files by this.
            shown = parse_qs(query).get("show_file_info")
            return _hub_file(text, match, shown[0] if shown else match["rest"])
    raise ModelNotFoundError(
        f"{_shown(text)} does not name a repository; give it as org/repo, org/repo:Q4_K_M or "
        "org/repo:file.gguf"
    )


def _hub_file(text: str, match: re.Match[str], rest: str | None) -> HubFile:
    """Return the file of a match whose part after the repository is ``rest``."""
    revision, rest = unquote(match["at"] or ""), unquote(rest or "").strip("/")
    if not rest and _QUANTIZATION.fullmatch(revision):  # LM Studio's spelling: org/repo@q4_k_m
        revision, rest = "", revision
    if ".." in rest.split("/") or "\\" in rest or ".." in revision:
        raise ModelNotFoundError(f"{_shown(text)} leads out of the repository; name a file in it")
    at = None if revision in ("", "main") else revision
    if rest.lower().endswith(".gguf"):
        return HubFile(match["repo"], rest, None, at)
    # The folder of a tree page is a word that its files have in their path.
    is_folder = match.re is _PAGE and "/tree/" in match.string
    tag = rest.rpartition("/")[2] if is_folder else rest
    if tag.lower() in ("", "latest"):
        return HubFile(match["repo"], None, None, at)
    if not is_folder and not (match.re is _REFERENCE and _TAG.fullmatch(tag)):
        raise ModelNotFoundError(
            f"{_shown(text)} names {_shown(rest)}, which is not a GGUF file; give a file as "
            f"{match['repo']}:file.gguf, or a quantization as {match['repo']}:Q4_K_M"
        )
    return HubFile(match["repo"], None, tag, at)


def advice(text: str) -> str | None:
    """Return what to give instead of a text that names no file and nothing on Hugging Face.

    None where nothing is known about it.
    """
    if "://" in text:
        return (
            f"{_shown(text)} is not on Hugging Face, the only place pyemo fetches from; download "
            "the file yourself and give its path"
        )
    path = _PATH.fullmatch(text)
    if path is not None and text.lower().endswith(".gguf"):
        return (
            f"no file {_shown(text)} here; for a file of the Hugging Face repository "
            f"{path['repo']} give {path['repo']}:{path['rest']}"
        )
    if _OLLAMA.fullmatch(text) and not _DRIVE.fullmatch(text):
        return (
            f"{_shown(text)} looks like a model of Ollama, whose registry pyemo does not read; "
            "give the same model's GGUF on Hugging Face as org/repo:Q4_K_M, or the path that "
            "`ollama show --modelfile NAME` prints after FROM"
        )
    return None


def _shown(text: str) -> str:
    return repr(text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}...")
