"""Promises of ``pyemo.files.hub_names``: what people paste, and what it means."""

from __future__ import annotations

import pytest

from pyemo.errors import ModelNotFoundError
from pyemo.files.hub_names import HubFile, advice, parse

PAGE = "https://huggingface.co/org/repo-GGUF"


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("org/repo", HubFile("org/repo")),
        ("org/repo:Q4_K_M", HubFile("org/repo", tag="Q4_K_M")),
        ("org/repo:q4_k_m", HubFile("org/repo", tag="q4_k_m")),
        ("org/repo:UD-Q4_K_XL", HubFile("org/repo", tag="UD-Q4_K_XL")),
        ("org/repo:latest", HubFile("org/repo")),
        ("org/repo@q4_k_m", HubFile("org/repo", tag="q4_k_m")),
        ("org/repo@v1.0", HubFile("org/repo", revision="v1.0")),
        ("org/repo@main:Q8_0", HubFile("org/repo", tag="Q8_0")),
        ("org/repo-GGUF:m.gguf", HubFile("org/repo-GGUF", "m.gguf")),
        ("o.r-g_1/re.po:sub/m.gguf", HubFile("o.r-g_1/re.po", "sub/m.gguf")),
        ("org/repo:M.GGUF", HubFile("org/repo", "M.GGUF")),
        ("hf:org/repo", HubFile("org/repo")),
        ("hf:org/repo:Q8_0", HubFile("org/repo", tag="Q8_0")),
        ("hf:org/repo/sub/m.gguf", HubFile("org/repo", "sub/m.gguf")),
        ("hf://org/repo/m.gguf", HubFile("org/repo", "m.gguf")),
        ("hf://models/org/repo@v2/m.gguf", HubFile("org/repo", "m.gguf", revision="v2")),
        ("hf.co/org/repo", HubFile("org/repo")),
        ("hf.co/org/repo:Q4_K_M", HubFile("org/repo", tag="Q4_K_M")),
        ("huggingface.co/org/repo:IQ4_XS", HubFile("org/repo", tag="IQ4_XS")),
        ("HTTPS://HuggingFace.co/org/repo/", HubFile("org/repo")),
        (f"{PAGE}", HubFile("org/repo-GGUF")),
        (f"{PAGE}?local-app=llama.cpp#files", HubFile("org/repo-GGUF")),
        (f"{PAGE}?show_file_info=m-Q8_0.gguf", HubFile("org/repo-GGUF", "m-Q8_0.gguf")),
        (f"{PAGE}/tree/main", HubFile("org/repo-GGUF")),
        (f"{PAGE}/tree/main/UD-Q4_K_XL", HubFile("org/repo-GGUF", tag="UD-Q4_K_XL")),
        (f"{PAGE}/blob/main/m.gguf", HubFile("org/repo-GGUF", "m.gguf")),
        (f"{PAGE}/resolve/main/sub/m.gguf?download=true", HubFile("org/repo-GGUF", "sub/m.gguf")),
        (f"{PAGE}/resolve/refs%2Fpr%2F1/a%20b.gguf", HubFile("org/repo-GGUF", "a b.gguf", None,
                                                             "refs/pr/1")),
    ],
)  # fmt: skip
def test_spelling_of_a_repository_is_understood(text: str, meant: HubFile) -> None:
    assert parse(text) == meant


@pytest.mark.parametrize(
    "text",
    ["name", "folder/m.gguf", "/a/b", "a/b/c", "./a", "../a", "a b/c", "C:\\a\\b.gguf", "C:/b",
     "a/", "", "name:tag", "a/b/c.gguf"],
)  # fmt: skip
def test_other_text_is_no_repository(text: str) -> None:
    assert parse(text) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("https://huggingface.co/org", "does not name a repository.*org/repo:Q4_K_M"),
        ("hf:", "does not name a repository"),
        ("https://huggingface.co/datasets/org/data", "Hugging Face's datasets"),
        (f"{PAGE}/blob/main/model.safetensors", "which is not a GGUF file"),
        ("hf:org/repo/../../m.gguf", "leads out of the repository"),
        ("org/repo:../m.gguf", "leads out of the repository"),
        ("org/repo:Q4 K M", "give a file as org/repo:file.gguf"),
    ],
)
def test_what_cannot_be_a_model_says_what_to_give(text: str, said: str) -> None:
    with pytest.raises(ModelNotFoundError, match=said):
        parse(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("llama3.2:1b", "looks like a model of Ollama"),
        ("ollama run qwen3", "looks like a model of Ollama"),
        ("ollama.com/library/gemma3", "looks like a model of Ollama"),
        ("registry.ollama.ai/library/gemma3:1b", "looks like a model of Ollama"),
        ("https://example.org/m.gguf", "the only place pyemo fetches from"),
        ("org/repo/sub/m.gguf", r"give org/repo:sub/m\.gguf"),
    ],
)
def test_name_of_another_program_says_what_to_give(text: str, said: str) -> None:
    assert said.replace("\\", "") in (advice(text) or "")


@pytest.mark.parametrize("text", ["smollm", "C:", "C:\\m.gguf", "/a/b/m.gguf", ""])
def test_nothing_is_said_of_other_names(text: str) -> None:
    assert advice(text) is None


@pytest.mark.parametrize(
    "text", ["org/repo", "org/repo:Q8_0", "org/repo@v1:sub/m.gguf", "org/repo@v1"]
)
def test_what_is_shown_is_understood_again(text: str) -> None:
    meant = parse(text)
    assert str(meant) == text
