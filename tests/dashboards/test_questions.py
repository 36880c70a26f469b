"""Every query of the dashboard and of the documentation finds something while robots are served."""

from __future__ import annotations

import re

import pytest

from dashboard import Question, documented, questions
from processes import Prometheus, until


def metrics_of(promql: str) -> set[str]:
    """The metrics that a query is about, as they are documented."""
    names = re.findall(r"\btensact_\w+", promql)
    bases = {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}
    return (set(names) | bases) & set(documented())


@pytest.mark.parametrize("question", questions(), ids=lambda question: question.where)
def test_it_is_answered(question: Question, prometheus: Prometheus) -> None:
    until(f"{question.promql} finds something", lambda: prometheus.ask(question.promql) or None)


def test_every_metric_is_on_the_dashboard() -> None:
    asked = set().union(*(metrics_of(q.promql) for q in questions() if not q.where.startswith("docs/")))
    assert asked == set(documented())
