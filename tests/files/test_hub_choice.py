"""Promises of ``pyemo.files.hub_choice``: the model among a repository's files."""

from __future__ import annotations

import pytest

from pyemo.errors import ModelNotFoundError
from pyemo.files.hub_choice import choose
from pyemo.files.hub_names import HubFile

FORMATS = [
    "BF16", "F16", "IQ2_M", "IQ3_M", "IQ3_XS", "IQ3_XXS", "IQ4_NL", "IQ4_XS", "Q2_K", "Q2_K_L",
    "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q3_K_XL", "Q4_0", "Q4_1", "Q4_K_L", "Q4_K_M", "Q4_K_S",
    "Q5_K_L", "Q5_K_M", "Q5_K_S", "Q6_K", "Q6_K_L", "Q8_0", "UD-IQ1_M", "UD-IQ1_S", "UD-IQ2_M",
    "UD-IQ2_XXS", "UD-IQ3_XXS", "UD-Q2_K_XL", "UD-Q3_K_XL", "UD-Q4_K_XL", "UD-Q5_K_XL",
    "UD-Q6_K_XL", "UD-Q8_K_XL",
]  # fmt: skip
MANY = (
    *(f"Tiny-1B-{format}.gguf" for format in FORMATS),
    "mmproj-Tiny-1B-F16.gguf",
    "imatrix_unsloth.gguf",
    "Tiny-1B-lora-F16.gguf",
    "control_vectors/Tiny-1B-happy-Q4_K_M.gguf",
    "README.md",
    "config.json",
)
SPLIT = tuple(f"Q8_0/big-Q8_0-{i:05d}-of-00003.gguf" for i in (1, 2, 3))


def chosen(files: tuple[str, ...], tag: str | None = None, repo: str = "org/Tiny-1B-GGUF") -> str:
    (file,) = choose(HubFile(repo, tag=tag), files)
    return file


def test_repository_of_forty_files_gives_the_preferred_format() -> None:
    assert len(MANY) > 40
    assert chosen(MANY) == "Tiny-1B-Q4_K_M.gguf"


@pytest.mark.parametrize("format", FORMATS)
def test_each_of_forty_files_is_had_by_its_format_in_either_case(format: str) -> None:
    file = f"Tiny-1B-{format}.gguf"
    assert (chosen(MANY, format), chosen(MANY, format.lower())) == (file, file)


def test_format_without_its_makers_prefix_is_found() -> None:
    assert chosen(MANY, "Q4_K_XL") == "Tiny-1B-UD-Q4_K_XL.gguf"


@pytest.mark.parametrize(
    ("only", "repo"),
    [
        ("m-UD-Q4_K_XL.gguf", "org/m-GGUF"),
        ("m-IQ4_XS.gguf", "org/m-GGUF"),
        ("m.gguf", "org/m-GGUF"),
        ("m-00001-of-00001.gguf", "org/m-GGUF"),
        ("draft-0.6b-Q4_0.gguf", "org/draft-0.6b"),
        ("m-lora-merged-Q4_0.gguf", "org/m-GGUF"),
    ],
)
def test_only_model_is_taken_beside_an_image_projector(only: str, repo: str) -> None:
    assert chosen((only, "mmproj-F16.gguf"), repo=repo) == only


@pytest.mark.parametrize(
    "neighbour",
    ["mmproj-m-Q4_K_M.gguf", "m.imatrix-Q4_K_M.gguf", "m-Q4_K_M.control-vector.gguf",
     "loras/m-lora-Q4_K_M.gguf", "adapter-Q4_K_M.gguf", "mtp-m-Q4_K_M.gguf", "m-draft-Q4_K_M.gguf",
     "MTP/m-Q4_K_M.gguf", "vectors/happy-Q4_K_M.gguf"],
)  # fmt: skip
def test_neighbour_is_not_taken_for_the_model(neighbour: str) -> None:
    assert chosen((neighbour, "m-Q8_0.gguf")) == "m-Q8_0.gguf"


@pytest.mark.parametrize("tag", ["f16", "fp16", "F16"])
@pytest.mark.parametrize("file", ["m-fp16.gguf", "m.F16.gguf"])
def test_half_precision_has_two_names(file: str, tag: str) -> None:
    assert chosen((file, "m-q4_0.gguf"), tag) == file


def test_plain_format_is_taken_before_a_makers_own() -> None:
    assert chosen(("m-UD-Q4_K_M.gguf", "m-Q4_K_M.gguf")) == "m-Q4_K_M.gguf"


def test_model_named_as_the_repository_is_taken_before_its_variants() -> None:
    files = ("Tiny-1B-128K-Q4_K_M.gguf", "tiny-1b.Q4_K_M.gguf")
    assert chosen(files) == "tiny-1b.Q4_K_M.gguf"


def test_word_of_the_name_tells_models_apart() -> None:
    files = ("a-1b-Q4_K_M.gguf", "a-1b-Q8_0.gguf", "a-3b-Q4_K_M.gguf")
    assert chosen(files, "3b", "org/a") == "a-3b-Q4_K_M.gguf"
    assert chosen(files, "1b", "org/a") == "a-1b-Q4_K_M.gguf"


def test_several_models_are_left_to_the_user() -> None:
    with pytest.raises(ModelNotFoundError, match=r"one of several models.*org/a:a-1b-Q4_K_M\.gguf"):
        chosen(("a-1b-Q4_K_M.gguf", "a-3b-Q4_K_M.gguf"), repo="org/a")


def test_format_that_is_not_there_lists_the_formats() -> None:
    with pytest.raises(ModelNotFoundError, match=r"no model 'Q9'; it has BF16, F16, IQ2_M, .*Q8_0"):
        chosen(MANY, "Q9")


def test_part_of_a_format_is_not_the_format() -> None:
    with pytest.raises(ModelNotFoundError, match="no model 'Q4_K'"):
        chosen(("m-Q4_K_M.gguf",), "Q4_K")


def test_long_list_of_files_is_cut() -> None:
    files = tuple(f"{letter}.gguf" for letter in "abcdefghijkl")
    with pytest.raises(ModelNotFoundError, match=r"a\.gguf, .*h\.gguf and 4 more"):
        chosen(files)


@pytest.mark.parametrize("tag", [None, "Q8_0", "q8_0"])
def test_split_model_is_taken_whole(tag: str | None) -> None:
    files = (*reversed(SPLIT), "Q2_K/big-Q2_K-00001-of-00002.gguf", "mmproj-F16.gguf")
    assert choose(HubFile("org/big", tag=tag), files) == SPLIT


def test_missing_part_is_named() -> None:
    with pytest.raises(ModelNotFoundError, match=r"big-Q8_0-00002-of-00003\.gguf is missing"):
        choose(HubFile("org/big"), (SPLIT[0], SPLIT[2]))


def test_whole_file_is_taken_before_its_parts() -> None:
    files = ("m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00002-of-00002.gguf", "m-Q8_0.gguf")
    assert chosen(files) == "m-Q8_0.gguf"


def test_repository_without_gguf_says_where_to_look() -> None:
    with pytest.raises(ModelNotFoundError, match="holds no GGUF file; look for one whose name"):
        chosen(("model.safetensors",))


def test_repository_of_neighbours_only_says_so() -> None:
    with pytest.raises(ModelNotFoundError, match=r"holds no model.*is given to --cvec"):
        chosen(("control_vectors/happy.gguf", "mmproj-F16.gguf"))
