"""What the dashboard and the documentation ask."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import NamedTuple

from processes import ROOT

DASHBOARD = json.loads((ROOT / "dashboards/grafana/tensact.json").read_text())
DOCUMENT = (ROOT / "docs/metrics.md").read_text()


class Question(NamedTuple):
    """A query in PromQL, and who asks it."""

    where: str
    promql: str


class Documented(NamedTuple):
    """A row of the table in docs/metrics.md."""

    name: str
    kind: str
    labels: frozenset[str]


def panels() -> Iterator[dict]:
    for panel in DASHBOARD["panels"]:
        if panel["type"] == "row":
            yield from panel["panels"]
        else:
            yield panel


def variables() -> dict[str, str]:
    """What Grafana puts in the place of variables."""
    chosen = {item["name"]: item["current"]["value"] for item in DASHBOARD["templating"]["list"]}
    return chosen | {"__rate_interval": "4s", "__range": "1m", "__interval": "1s"}


def substituted(text: str) -> str:
    """The text with variables replaced; one that is unknown is an error."""
    return re.sub(r"\$\{?(\w+)\}?", lambda found: variables()[found[1]], text)


def questions() -> list[Question]:
    asked = [
        Question(f"{panel['title']} {target['refId']}", substituted(target["expr"]))
        for panel in panels()
        for target in panel["targets"]
        if "expr" in target
    ]
    found = re.findall(r"^```promql\n(.*?)\n```$", DOCUMENT, re.MULTILINE | re.DOTALL)
    # Shorter, so that the answer is there sooner.
    shown = [Question(f"docs/metrics.md {n}", re.sub(r"\[\dm\]", "[4s]", promql)) for n, promql in enumerate(found, 1)]
    return asked + shown


def documented() -> dict[str, Documented]:
    """Metrics by their names in Prometheus."""
    rows = [[cell.strip().strip("`") for cell in line.split("|")[1:-1]] for line in DOCUMENT.splitlines()]
    found = {}
    for row in rows:
        if len(row) == 6 and row[0].startswith("tensact."):
            name, _, kind, attributes, prometheus, _ = row
            labels = frozenset(re.findall(r"tensact\.\w+", attributes))
            found[prometheus] = Documented(name, kind, frozenset(label.replace(".", "_") for label in labels))
    return found
