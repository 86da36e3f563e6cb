"""Chat templates of model families, each with the special tokens it writes, over tiny vocabularies.

The templates are written here from each family's format; they are short where the families' own
are long. Knows nothing of pyemo.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import gguf
from tiny_models import build_tiny
from tiny_vocabulary import Vocabulary, bpe_vocabulary, spm_vocabulary

_REPLY = "{% if add_generation_prompt %}"


@dataclass(frozen=True)
class Family:
    """A family's format.

    Attributes:
        template: Jinja.
        control: its control tokens; the first begins a turn, the second ends one.
        added: tokens that were added to the vocabulary and are not control tokens.
        kind: "bpe", "spm", or "spm+space" for one that puts a space before a text's first word.
        name: what the file calls the model, where llama.cpp looks at it.
    """

    template: str
    control: tuple[str, ...]
    added: tuple[str, ...] = ()
    kind: str = "bpe"
    name: str | None = None

    def vocabulary(self) -> Vocabulary:
        """Return the tiny vocabulary with this family's special tokens in front."""
        base = bpe_vocabulary("<|im_end|>") if self.kind == "bpe" else spm_vocabulary()
        texts = (*self.control, *self.added)
        kinds = (gguf.TokenType.CONTROL,) * len(self.control)
        kinds += (gguf.TokenType.USER_DEFINED,) * len(self.added)
        kept = [i for i in range(len(base)) if base.types[i] != gguf.TokenType.CONTROL]
        scores = base.scores and (
            *(0.0,) * len(texts),
            *(base.scores[i] for i in kept),
        )
        special = {"bos": 0, "eos": 1}
        if self.kind != "bpe":
            special["unk"] = len(texts) + [base.tokens[i] for i in kept].index("<unk>")
        return replace(
            base,
            tokens=(*texts, *(base.tokens[i] for i in kept)),
            types=(*kinds, *(base.types[i] for i in kept)),
            scores=scores,
            special=special,
            add_space_prefix=self.kind == "spm+space",
        )

    def build(self, path: Path) -> Path:
        """Write a tiny model of this family to ``path`` and return it."""
        architecture = "llama" if self.kind == "bpe" else "gemma2"
        build_tiny(
            architecture,
            path,
            n_layer=1,
            chat_template=self.template,
            vocabulary=self.vocabulary(),
            name=self.name,
        )
        return path


FAMILIES: Mapping[str, Family] = {
    "chatml": Family(
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
        "{% endfor %}" + _REPLY + "{{ '<|im_start|>assistant\n' }}{% endif %}",
        ("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
    ),
    "qwen3": Family(
        "{% for m in messages %}{% set said = m.content %}"
        "{% if m.role == 'assistant' and '</think>' in said %}"
        "{% set said = said.split('</think>')[-1].lstrip('\n') %}{% endif %}"
        "{{ '<|im_start|>' + m.role + '\n' + said + '<|im_end|>\n' }}{% endfor %}" + _REPLY + ""
        "{{ '<|im_start|>assistant\n' }}{% if enable_thinking is defined and not enable_thinking %}"
        "{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}",
        ("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
        ("<think>", "</think>", "<tool_call>", "</tool_call>"),
    ),
    "llama3": Family(
        "{{ bos_token }}{% for m in messages %}"
        "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim }}"
        "{{ '<|eot_id|>' }}{% endfor %}" + _REPLY + ""
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
    ),
    "gemma3": Family(
        "{{ bos_token }}{% for m in messages %}{% set who = m.role %}"
        "{% if who == 'assistant' %}{% set who = 'model' %}{% endif %}"
        "{{ '<start_of_turn>' + who + '\n' + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
        + _REPLY
        + "{{ '<start_of_turn>model\n' }}{% endif %}",
        ("<bos>", "<end_of_turn>", "<start_of_turn>", "<eos>", "<pad>"),
        ("\n", "\n\n", "[multimodal]"),
        "spm",
    ),
    "gemma4": Family(
        "{{ bos_token }}{% for m in messages %}{% set who = m.role %}"
        "{% if who == 'assistant' %}{% set who = 'model' %}{% endif %}"
        "{{ '<|turn>' + who + '\n' + m.content | trim + '<turn|>\n' }}{% endfor %}" + _REPLY + ""
        "{{ '<|turn>model\n' }}{% if not enable_thinking %}"
        "{{ '<|channel>thought\n<channel|>' }}{% endif %}{% endif %}",
        ("<bos>", "<turn|>", "<|turn>", "<eos>"),
        ("<|channel>", "<channel|>", "<|think|>"),
        "spm",
    ),
    "mistral": Family(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}"
        "{{ ' ' + m.content + eos_token }}{% else %}{{ '[INST] ' + m.content + ' [/INST]' }}"
        "{% endif %}{% endfor %}",
        ("<s>", "</s>", "[INST]", "[/INST]"),
        (),
        "spm+space",
    ),
    "phi3": Family(
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
        + _REPLY
        + "{{ '<|assistant|>\n' }}{% endif %}",
        ("<s>", "</s>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|endoftext|>"),
        (),
        "spm+space",
        "tiny Phi-3",
    ),
    "smollm3": Family(
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}"
        "{{ '<|im_start|>assistant\n' + m.content + '<|im_end|>\n' }}{% endgeneration %}{% else %}"
        "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
        + _REPLY
        + "{{ '<|im_start|>assistant\n' }}{% endif %}",
        ("<|im_start|>", "<|im_end|>", "<|begin_of_text|>"),
        ("<think>", "</think>"),
    ),
    "granite": Family(
        "{% for m in messages %}{{ '<|start_of_role|>' + m.role + '<|end_of_role|>' }}"
        "{{ m.content + '<|end_of_text|>\n' }}{% endfor %}" + _REPLY + ""
        "{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}",
        ("<|start_of_role|>", "<|end_of_text|>", "<|end_of_role|>"),
    ),
    "deepseek": Family(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}"
        "{% elif m.role == 'user' %}{{ '<\uff5cUser\uff5c>' + m.content }}{% else %}"
        "{{ '<\uff5cAssistant\uff5c>' + m.content.split('</think>')[-1] + eos_token }}{% endif %}"
        "{% endfor %}" + _REPLY + "{{ '<\uff5cAssistant\uff5c><think>\n' }}{% endif %}",
        (
            "<\uff5cbegin\u2581of\u2581sentence\uff5c>",
            "<\uff5cend\u2581of\u2581sentence\uff5c>",
            "<\uff5cUser\uff5c>",
            "<\uff5cAssistant\uff5c>",
        ),
        ("<think>", "</think>"),
    ),
    "gpt-oss": Family(
        "{% for m in messages %}{{ '<|start|>' + m.role }}{% if m.role == 'assistant' %}"
        "{{ '<|channel|>final' }}{% endif %}{{ '<|message|>' + m.content + '<|end|>' }}{% endfor %}"
        + _REPLY
        + "{{ '<|start|>assistant' }}{% endif %}",
        ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>"),
    ),
    "glm4": Family(
        "[gMASK]<sop>{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content }}{% endfor %}"
        + _REPLY
        + "{{ '<|assistant|>' }}{% endif %}",
        ("<|user|>", "<|assistant|>", "<|system|>", "[gMASK]", "<sop>", "<eop>"),
        ("<think>", "</think>"),
    ),
}
