"""`/metrics` is what docs/metrics.md says."""

from __future__ import annotations

import subprocess

from prometheus_client.parser import text_string_to_metric_families

from dashboard import documented
from processes import Server, until

# What Prometheus adds to the labels of a histogram.
BOUND = {"le"}


def families(server: Server) -> dict[str, tuple[str, set[frozenset[str]]]]:
    """Kind and sets of labels of every metric, by its name in the documentation."""
    found = {}
    for family in text_string_to_metric_families(server.metrics()):
        name = family.name + ("_total" if family.type == "counter" else "")
        found[name] = (family.type, {frozenset(sample.labels) - BOUND for sample in family.samples})
    # What the service is called.
    del found["target_info"]
    return found


def test_what_is_documented_is_there_and_the_other_way_round(server: Server) -> None:
    wanted = documented()
    assert len(wanted) == 18

    def all_there() -> dict[str, tuple[str, set[frozenset[str]]]] | None:
        found = families(server)
        return found if set(found) >= set(wanted) else None

    found = until("all metrics are at /metrics", all_there)
    assert set(found) == set(wanted)
    for name, (kind, labels) in found.items():
        assert kind == wanted[name].kind, name
        assert labels == {wanted[name].labels}, name


def test_prometheus_has_nothing_to_complain_about(server: Server) -> None:
    checked = subprocess.run(["promtool", "check", "metrics"], input=server.metrics(), capture_output=True, text=True)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
