"""What a check finds out about the text: whether a seed repeats it, its regime and its emotion."""

from __future__ import annotations

from typing import Any, TypeAlias

from pyemo.check.readings import Findings
from pyemo.check.subject import PROMPT, Subject
from pyemo.engine.batches import n_ctx_for
from pyemo.engine.sampling import SamplerParams
from pyemo.errors import MissingExtraError
from pyemo.measures.proportion import Proportion
from pyemo.strengths.trials import Trials
from pyemo.texts.sources import prompts

Judge: TypeAlias = Any  # pyemo.judges.Judge; that module is imported where a judge is wanted

_N_SAMPLED, _N_REGIME, _N_ROWS = 32, 48, 8
_SEED = 7


def add_same_text(findings: Findings, subject: Subject) -> None:
    """Write one sampled text twice, each with a new engine."""
    texts = []
    for _ in range(2):
        with subject.engine(n_ctx=subject.plan.n_ctx) as engine:
            reply = engine.generate(
                PROMPT,
                steering=subject.mood,
                max_tokens=_N_SAMPLED,
                sampler=SamplerParams(seed=_SEED),
            )
            texts.append([token.id for token in reply])
    findings.add(
        "same_text",
        "same seed, same text",
        texts[0] == texts[1],
        limit_name="same_text",
        note=f"{len(texts[0])} sampled tokens, two engines",
    )


def add_regime(findings: Findings, subject: Subject) -> None:
    """Write texts beside their unsteered twins; say their regime, and their emotion by a judge."""
    if subject.vector is None:
        note = "no vector was given"
        findings.add("regime", "regime", None, limit_name="regime", note=note)
        return
    judge, why_not = _judge(subject.plan.judge)
    if judge is None:
        findings.remarks.append(f"The text's emotion is not judged: {why_not}")
    texts = prompts("selection")
    tokens = [subject.model.answer_tokens(text) for text in texts]
    n_ctx = n_ctx_for(tokens, _N_REGIME, _N_ROWS)
    with subject.engine(n_ctx=n_ctx, n_seq_max=_N_ROWS, n_outputs=32) as engine:
        trials = Trials(engine, texts, max_tokens=_N_REGIME, judge=judge, n_rows=_N_ROWS)
        (trial,) = trials.run([(subject.vector, subject.strength)])[0]
    report = trial.report
    share = Proportion(report.n_coherent, report.n_texts)
    findings.add(
        "regime",
        "regime",
        report.regime.value,
        limit_name="regime",
        note=f"at strength {subject.strength:g}: {report.n_coherent} of {report.n_texts} "
        f"texts coherent [{100 * share.low:.0f}, {100 * share.high:.0f}%], perplexity ratio "
        f"{report.ratio.value:.2f}",
    )
    if trial.effect is not None and trial.noise is not None:
        findings.add(
            "judged_effect",
            "judged emotion",
            trial.effect - trial.noise,
            note=f"{subject.plan.judge}: {trial.effect:+.3f} by the vector, {trial.noise:+.3f} by "
            "random directions of equal norm",
        )


def _judge(name: str) -> tuple[Judge | None, str]:
    """Return the judge, or None and why there is none."""
    if not name:
        return None, "no judge was asked for"
    from pyemo.judges import load_judge

    try:
        return load_judge(name), ""
    except MissingExtraError as error:
        return None, str(error)
