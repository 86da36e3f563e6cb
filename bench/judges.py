"""How far judges hear the voice of replies that another writer wrote: the test split.

    python bench/judges.py minilm voice forced-choice:qwen2.5-coder-0.5b-instruct --six

For each judge: top 1 among the emotions (none for a forced choice, which takes six prompts for
each score), and pairs, each reply against one of another emotion; with Wilson's 95% interval.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from pyemo.emotions import EMOTIONS
from pyemo.judges import load_judge, voice_accuracy, voice_pair_accuracy

SIX = ("angry", "sad", "calm", "enthusiastic", "afraid", "loving")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("judges", nargs="+", metavar="JUDGE")
    parser.add_argument("--six", action="store_true", help=f"only {', '.join(SIX)}")
    chosen = parser.parse_args(arguments)
    emotions = SIX if chosen.six else tuple(EMOTIONS)
    print("| judge | texts | top 1 | mean rank | pairs |", "|---" * 5 + "|", sep="\n")
    for name in chosen.judges:
        judge = load_judge(name)
        pairs = voice_pair_accuracy(judge, emotions)
        top, rank = "", ""
        if not hasattr(judge, "prefers"):
            found = voice_accuracy(judge, emotions)
            top, rank = str(found.top1), f"{found.mean_rank:.2f}"
        print(f"| {name} | {pairs.n} | {top} | {rank} | {pairs} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
