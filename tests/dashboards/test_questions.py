"""Every query of the dashboard and of the documentation finds something while robots are served."""

from __future__ import annotations

import re

import pytest

from dashboard import Question, documented, questions
from processes import Prometheus, until
from test_metrics import PENDING

# Metrics that may have no samples on this board, and why.
MAY_BE_EMPTY: dict[str, str] = {}


def metrics_of(promql: str) -> set[str]:
    """The metrics that a query is about, as they are documented."""
    names = re.findall(r"\btensact_\w+", promql)
    bases = {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}
    return (set(names) | bases) & set(documented())


@pytest.mark.parametrize("question", questions(), ids=lambda question: question.where)
def test_it_is_answered(question: Question, prometheus: Prometheus) -> None:
    pending = metrics_of(question.promql) & set(PENDING)
    excused = metrics_of(question.promql) & set(MAY_BE_EMPTY)
    if pending:
        assert not prometheus.ask(question.promql), f"{pending}: answered, so it is not pending any more"
        pytest.skip("; ".join(sorted({PENDING[name] for name in pending})))
    if excused:
        prometheus.ask(question.promql)
        return
    until(f"{question.promql} finds something", lambda: prometheus.ask(question.promql) or None)


def test_every_metric_is_on_the_dashboard() -> None:
    asked = set().union(*(metrics_of(q.promql) for q in questions() if not q.where.startswith("docs/")))
    assert asked == set(documented())
