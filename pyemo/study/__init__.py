"""The paper's findings on quantized models: one module each, a store of results, and a report.

```
from pyemo.study import Plan, built_in_emotions, run_study, runner

plan = Plan(models=("smollm2-135m-instruct",), emotions=built_in_emotions())
with runner() as run:
    run_study(plan, run).save("report")
```
"""

from pyemo.jobs.runner import runner
from pyemo.jobs.store import Store
from pyemo.study.finding import Finding, Table, Verdict
from pyemo.study.plan import Plan, built_in_emotions
from pyemo.study.report import Report
from pyemo.study.run import run_study

__all__ = [
    "Finding",
    "Plan",
    "Report",
    "Store",
    "Table",
    "Verdict",
    "built_in_emotions",
    "run_study",
    "runner",
]
