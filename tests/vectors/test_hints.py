"""A model hint is understood in the spelling of llama.cpp and of transformers."""

import gguf
import pytest

from pyemo.vectors import hints
from pyemo.vectors.model_types import LLAMA_CPP, MODEL_TYPES

PAIRS = [
    ("qwen3_moe", "qwen3moe"),
    ("qwen3_5_text", "qwen35"),
    ("qwen3_5_moe", "qwen35moe"),
    ("qwen2_vl", "qwen2vl"),
    ("gemma3_text", "gemma3"),
    ("gemma4_text", "gemma4"),
    ("gemma3n_text", "gemma3n"),
    ("phi", "phi2"),
    ("phimoe", "phimoe"),
    ("mixtral", "llama"),
    ("mistral", "llama"),
    ("cohere", "command-r"),
    ("deepseek_v3", "deepseek2"),
    ("falcon_h1", "falcon-h1"),
    ("granitemoehybrid", "granitehybrid"),
    ("gpt_neox", "gptneox"),
    ("gpt_oss", "gpt-oss"),
    ("olmo3", "olmo2"),
    ("lfm2_moe", "lfm2moe"),
    ("nemotron_h", "nemotron_h_moe"),
    ("ernie4_5_moe", "ernie4_5-moe"),
    ("qwen3.5", "qwen35"),
]


@pytest.mark.parametrize(("hint", "architecture"), PAIRS)
def test_a_model_type_of_transformers_fits_the_architecture_it_becomes(hint, architecture):
    assert hints.fits(hint, architecture)


@pytest.mark.parametrize("name", sorted(gguf.MODEL_ARCH_NAMES.values()))
def test_llama_cpps_own_name_fits_itself(name):
    assert hints.fits(name, name)


@pytest.mark.parametrize(
    ("hint", "architecture"),
    [("qwen2", "qwen3"), ("gemma3_text", "gemma4"), ("phi", "phi3"), ("mixtral", "qwen3moe")],
)
def test_a_hint_fits_no_other_architecture(hint, architecture):
    assert hints.architectures(hint)
    assert not hints.fits(hint, architecture)


@pytest.mark.parametrize("hint", ["", "unknown", "qwen2.5", "my model", "n/a"])
def test_free_text_means_no_architecture(hint):
    assert not hints.architectures(hint)


def test_the_table_names_only_what_both_sides_list():
    auto = pytest.importorskip(
        "transformers.models.auto.configuration_auto", reason="needs the extra `extract`"
    )
    assert {name for names in MODEL_TYPES.values() for name in names} <= LLAMA_CPP
    assert set(MODEL_TYPES) - set(auto.CONFIG_MAPPING_NAMES) == set()
