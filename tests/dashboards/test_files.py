"""The files that run Grafana, Prometheus and Tempo fit together."""

from __future__ import annotations

import re
import subprocess

import yaml

from dashboard import DASHBOARD, panels, substituted
from processes import ROOT

FOLDER = ROOT / "dashboards"
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text())
PROVISIONING = FOLDER / "grafana/provisioning"
SOURCES = yaml.safe_load((PROVISIONING / "datasources/tensact.yaml").read_text())["datasources"]


def mounts() -> dict[str, str]:
    """Files and folders of the repository, by where containers find them."""
    volumes = [volume.split(":") for service in COMPOSE["services"].values() for volume in service["volumes"]]
    return {inside: outside for outside, inside, *_ in volumes if outside.startswith("./")}


def test_prometheus_takes_its_file() -> None:
    subprocess.run(["promtool", "check", "config", FOLDER / "prometheus.yml"], check=True, capture_output=True)


def test_images_have_versions_and_mounted_files_are_there() -> None:
    assert set(COMPOSE["services"]) == {"prometheus", "tempo", "grafana"}
    for service in COMPOSE["services"].values():
        assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+\.\d+", service["image"])
        for volume in service["volumes"]:
            outside = volume.split(":")[0]
            assert (FOLDER / outside).exists() if outside.startswith("./") else outside in COMPOSE["volumes"]
    # Nobody but this host gets at them.
    assert all(port.startswith("127.0.0.1:") for port in COMPOSE["services"]["tempo"]["ports"])


def test_programs_are_told_where_their_files_are() -> None:
    services, mounted = COMPOSE["services"], mounts()
    assert mounted["/etc/prometheus/prometheus.yml"] == "./prometheus.yml"
    assert "--config.file=/etc/prometheus/prometheus.yml" in services["prometheus"]["command"]
    assert mounted["/etc/tempo.yaml"] == "./tempo.yaml"
    assert services["tempo"]["command"] == ["-config.file=/etc/tempo.yaml"]
    assert mounted["/etc/grafana/provisioning"] == "./grafana/provisioning"
    provider = yaml.safe_load((PROVISIONING / "dashboards/tensact.yaml").read_text())["providers"][0]
    dashboard = f"{provider['options']['path']}/tensact.json"
    assert mounted[dashboard] == "./grafana/tensact.json"
    assert services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == dashboard


def test_grafana_finds_prometheus_and_tempo() -> None:
    tempo = yaml.safe_load((FOLDER / "tempo.yaml").read_text())
    ports = {port.split(":")[1] for port in COMPOSE["services"]["tempo"]["ports"]}
    protocols = tempo["distributor"]["receivers"]["otlp"]["protocols"]
    received = {protocol["endpoint"].split(":")[1] for protocol in protocols.values()}
    assert ports == received | {str(tempo["server"]["http_listen_port"])}
    urls = {source["type"]: source["url"] for source in SOURCES}
    assert urls["tempo"] == f"http://127.0.0.1:{tempo['server']['http_listen_port']}"
    listens = next(word for word in COMPOSE["services"]["prometheus"]["command"] if "web.listen-address" in word)
    assert urls["prometheus"] == f"http://{listens.split('=')[1]}"
    scraped = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["global"]["scrape_interval"]
    interval = next(source for source in SOURCES if source["type"] == "prometheus")["jsonData"]["timeInterval"]
    assert interval == scraped


def test_every_data_source_is_provisioned() -> None:
    known = {(source["type"], source["uid"]) for source in SOURCES}
    used = set()
    for panel in panels():
        for source in [panel["datasource"], *(target["datasource"] for target in panel["targets"])]:
            used.add((source["type"], source["uid"]))
    assert used == known


def test_panels_have_names_and_places_of_their_own() -> None:
    every = DASHBOARD["panels"]
    assert len({panel["id"] for panel in every}) == len(every)
    taken: set[tuple[int, int]] = set()
    for panel in every:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells
    for panel in panels():
        assert panel["description"] and panel["targets"], panel["title"]


def test_traces_are_asked_for_by_their_service() -> None:
    queries = [substituted(target["query"]) for panel in panels() for target in panel["targets"] if "query" in target]
    assert len(queries) == 1
    assert 'resource.service.name = "tensact"' in queries[0] and "duration > 0.1s" in queries[0]
