"""Write pyemo/vectors/model_types.py: transformers' model types against llama.cpp's architectures.

    python tools/model_types.py LLAMA_CPP

LLAMA_CPP is the source of llama.cpp; transformers is the installed one. A row of the table is what
both sides say: transformers names the class of a model type, llama.cpp's converter names the
architecture it makes of a class. Only names are read; nothing of either is copied or run but their
lists of names.
"""

from __future__ import annotations

import ast
import sys
import textwrap
from collections import defaultdict
from pathlib import Path

TARGET = Path(__file__).parents[1] / "pyemo" / "vectors" / "model_types.py"

HEAD = '''\
"""Which architectures of llama.cpp a model type of transformers becomes: names, and nothing else.

Made by tools/model_types.py from the lists of transformers {version} and of llama.cpp's converter;
not edited by hand.
"""

LLAMA_CPP = frozenset({{
{names}
}})  # fmt: skip
"""Every architecture that llama.cpp names."""

MODEL_TYPES = {{
{rows}
}}
"""A model type of transformers -> the architectures of llama.cpp its models become."""
'''

_LISTS = (
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_MAPPING_NAMES",
)
# what llama.cpp makes of a model's other parts
_NO_TEXT_MODEL = {"clip"}


def main() -> None:
    source = Path(sys.argv[1])
    names = _architectures(source)
    made = _converted(source / "conversion", names)
    import transformers
    from transformers.models.auto import configuration_auto, modeling_auto

    types: dict[str, set[str]] = defaultdict(set)
    for list_name in _LISTS:
        for model_type, classes in getattr(modeling_auto, list_name).items():
            for name in (classes,) if isinstance(classes, str) else classes:
                types[model_type] |= made.get(name.casefold(), set())
    # the text part of a model with ears or eyes has a type of its own, and often no entry
    for model_type in configuration_auto.CONFIG_MAPPING_NAMES:
        if model_type.endswith("_text"):
            whole = types.get(model_type.removesuffix("_text"), set())
            types[model_type] = types[model_type] or whole
    rows = [
        f"    {model_type!r}: {tuple(sorted(found))!r},"
        for model_type, found in sorted(types.items())
        if found
    ]
    quoted = " ".join(f'"{name}",' for name in sorted(names.values()))
    lines = textwrap.wrap(quoted, 94, break_on_hyphens=False)
    TARGET.write_text(
        HEAD.format(
            version=transformers.__version__,
            names="\n".join(f"    {line}" for line in lines),
            rows="\n".join(rows),
        )
    )


def _architectures(source: Path) -> dict[str, str]:
    """Return the name of each member of llama.cpp's list of architectures, as it is in a file."""
    sys.path.insert(0, str(source / "gguf-py"))
    from gguf.constants import MODEL_ARCH_NAMES

    return {member.name: name for member, name in MODEL_ARCH_NAMES.items()}


def _converted(folder: Path, names: dict[str, str]) -> dict[str, set[str]]:
    """Return, for each class of transformers in lower case, what the converter makes of it."""
    classes = {
        node.name: node
        for path in sorted(folder.glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    }
    made: dict[str, set[str]] = defaultdict(set)
    for node in classes.values():
        found = {names[name] for name in _members(node, classes) if name in names}
        for registered in _registered(node):
            made[registered.casefold()] |= found - _NO_TEXT_MODEL
    return made


def _registered(node: ast.ClassDef) -> list[str]:
    calls = [call for call in node.decorator_list if isinstance(call, ast.Call)]
    return [
        argument.value
        for call in calls
        if ast.unparse(call.func).endswith(".register")
        for argument in call.args
        if isinstance(argument, ast.Constant)
    ]


def _members(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> set[str]:
    """Return the members of MODEL_ARCH that a converter, else its bases, may set."""
    found = {
        ast.unparse(assign.value).rpartition(".")[2]
        for assign in ast.walk(node)
        if isinstance(assign, ast.Assign | ast.AnnAssign) and assign.value is not None
        for target in (assign.targets if isinstance(assign, ast.Assign) else [assign.target])
        if ast.unparse(target) in ("model_arch", "self.model_arch")
    }
    for base in map(ast.unparse, node.bases):
        found = found or (_members(classes[base], classes) if base in classes else set())
    return found


if __name__ == "__main__":
    main()
