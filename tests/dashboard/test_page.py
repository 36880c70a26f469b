"""What the dashboard shows of a server under load, and what one can do with it."""

from __future__ import annotations

import pytest
from selenium.webdriver.common.keys import Keys

from page import WIDTH, Page
from running import Server

# How many pixels of the timeline have the colour of a request: neither grey nor the ground.
COLOURED = """
const canvas = document.getElementById("timeline");
const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
let coloured = 0;
for (let at = 0; at < data.length; at += 4) {
  const rgb = [data[at], data[at + 1], data[at + 2]];
  if (Math.max(...rgb) - Math.min(...rgb) > 60) coloured += 1;
}
return coloured;
"""


def milliseconds(text: str) -> float:
    """`12.3 ms` as a number."""
    return float(text.split()[0])


def choose_activity(page: Page) -> tuple[float, float]:
    """Stops the timeline, chooses an activity of the first chip with keys, and gives where it stands."""
    page.until("no blocks on the timeline", lambda: page.number("blocks") > 0)
    page["timeline"].send_keys(" ", Keys.ARROW_DOWN, ",")
    x, y = page.until("no activity was chosen", lambda: page["timeline"].get_attribute("data-cursor")).split(",")
    page.ticks()  # its request is answered by now
    return float(x), float(y)


def until_request(page: Page) -> None:
    """Waits until the panel shows a request, whose path adds up to its latency."""
    panel = page["request-panel"]
    latency = float(page.until("no request is shown", lambda: panel.get_attribute("data-latency")))
    assert latency > 0
    assert float(panel.get_attribute("data-path")) == pytest.approx(latency, rel=0.01)


def test_it_says_what_is_served(page: Page) -> None:
    assert "galaxy-bh" in page.chrome.title
    assert "pi05 on galaxy-bh · 32 pipelines" in page["what"].text
    assert page["emulated"].is_displayed()
    assert page["connection"].text == "live"
    chips = page.all("#board .chip")
    assert [chip.get_attribute("data-chip") for chip in chips] == [str(chip) for chip in range(32)]
    assert len(page.all("#board .link")) == 8 * 3 + 7 * 4
    assert "vision" in chips[0].get_attribute("aria-label")
    assert not page["restarted"].is_displayed()


def test_numbers_move(page: Page) -> None:
    answered = page.number("answered")
    page.until("nothing is answered", lambda: page.number("answered") > answered + 10)
    page.until("no chip has a load", lambda: any(chip.text not in ("–", "0%") for chip in page.all("#board .share")))
    loads = [chip.text for chip in page.all("#board .share")]
    page.until("loads stand still", lambda: [chip.text for chip in page.all("#board .share")] != loads)
    page.until("no percentile", lambda: page["figure-p50"].text.endswith(" ms"))
    assert 1 < milliseconds(page["figure-p50"].text) <= milliseconds(page["figure-p99"].text)
    for chart in ("latency", "throughput", "refusals", "queue"):
        page.until("no points", lambda: int(page[chart].get_attribute("data-points") or 0) >= 2)
    assert "p99" in page["latency"].get_attribute("aria-label")


def test_the_timeline_is_painted(page: Page) -> None:
    page.until("nothing is painted", lambda: page.script(COLOURED) > 200)


def test_measurements_stand_beside_the_plan(page: Page) -> None:
    def measured() -> bool:
        rows = page.script(
            "return [...document.querySelectorAll('#plan tbody tr')].map(row => [...row.cells].map(cell => cell.innerText))"
        )
        slices = {row[0].split()[0]: row for row in rows}
        cells = [slices["latency"][1:3]] + [slices[stage][2:4] for stage in ("vision", "prefix", "expert")]
        return all(float(planned) > 0 and measured != "–" for planned, measured in cells)

    page.until("no measurement of every stage", measured)
    assert len(page.all("#plan tbody tr")) < 10
    page["plan-each"].click()
    assert len(page.all("#plan tbody tr")) == 2 + 32 * 3


def test_a_click_on_an_activity_shows_its_request(page: Page) -> None:
    x, y = choose_activity(page)
    page.click_at(page["timeline"], x, y)
    until_request(page)
    label = page["request-panel"].get_attribute("data-trace")
    assert len(label) == 32 and page.chrome.current_url.endswith(f"#{label}")
    segments = page.all("#request-path li")
    assert segments and page.all("#request-gantt rect")
    shown = sum(milliseconds(time.get_attribute("textContent")) for time in page.all("#request-path .time"))
    assert shown == pytest.approx(float(page["request-panel"].get_attribute("data-latency")), rel=0.01)
    for segment in segments:
        waits = segment.get_attribute("textContent").count("waits for")
        assert waits == (1 if "wait" in segment.get_attribute("class") else 0)
    parts = {part.get_attribute("textContent") for part in page.all("#request-parts th")}
    assert {"queue", "vision", "prefix", "denoise"} <= parts


def test_keys_lead_to_a_request_and_back(page: Page) -> None:
    choose_activity(page)
    page["timeline"].send_keys(Keys.ENTER)
    until_request(page)
    assert page.chrome.switch_to.active_element == page["request-panel"]
    page.keys(Keys.ESCAPE)
    assert not page["request-panel"].is_displayed()
    assert page.chrome.switch_to.active_element == page["timeline"]


def test_a_slow_request_is_one_click_away(page: Page) -> None:
    trace = page.until("no slow requests", lambda: page.click_first("#slow button"))
    until_request(page)
    assert page["request-panel"].get_attribute("data-trace") == trace


def test_an_address_leads_to_a_request(page: Page, galaxy: Server) -> None:
    trace = "11111111aaaaaaaa22222222bbbbbbbb"
    galaxy.ask("arm", trace)
    page.chrome.get("about:blank")
    page.chrome.get(f"{galaxy.dashboard}#{trace}")
    until_request(page)
    assert trace in page["request-title"].text


def test_a_request_on_its_way_is_shown_when_it_is_answered(page: Page, galaxy: Server) -> None:
    trace = "55555555eeeeeeee66666666ffffffff"
    page["open-id"].send_keys(trace, Keys.ENTER)
    page.until("no word", lambda: page["request-state"].text not in ("", "Asking the server …"))
    assert ["404" in error for error in page.errors()] == [True]
    galaxy.ask("arm", trace)
    until_request(page)
    assert trace in page["request-title"].text


def test_names_of_robots_are_text(page: Page, galaxy: Server) -> None:
    trace, robot = "33333333cccccccc44444444dddddddd", "<img src=x onerror=document.title='theirs'>"
    galaxy.ask(robot, trace)
    page["open-id"].send_keys(trace, Keys.ENTER)
    until_request(page)
    assert robot in page["request-facts"].text
    assert not page.all("main img") and page.chrome.title != "theirs"


def test_an_unknown_request_is_said_to_be_unknown(page: Page) -> None:
    page["open-id"].send_keys("0123456789abcdef0123456789abcdef", Keys.ENTER)
    page.until("no word", lambda: page["request-state"].text not in ("", "Asking the server …"))
    assert not page["request-body"].is_displayed()
    errors = page.errors()
    assert len(errors) == 1 and "404" in errors[0]


def test_a_chip_filters_the_timeline(page: Page) -> None:
    chip = page.all("#board .chip")[9]
    chip.click()
    assert chip.get_attribute("aria-pressed") == "true"
    assert "chip 9" in page["filter"].text
    page["filter"].click()
    assert chip.get_attribute("aria-pressed") == "false"
    assert not page["filter"].is_displayed()


def test_space_pauses_and_keys_zoom_and_pan(page: Page) -> None:
    timeline = page["timeline"]
    page.keys(" ")
    assert page.data("paused") == "true" and page["connection"].text == "paused"
    stands = float(timeline.get_attribute("data-right"))
    page.ticks()
    assert float(timeline.get_attribute("data-right")) == stands
    span = float(timeline.get_attribute("data-span"))
    timeline.send_keys("+")
    assert float(timeline.get_attribute("data-span")) < span
    timeline.send_keys("-", "-")
    assert float(timeline.get_attribute("data-span")) > span
    before = float(timeline.get_attribute("data-right"))
    timeline.send_keys(Keys.ARROW_LEFT)
    assert float(timeline.get_attribute("data-right")) < before
    timeline.send_keys(Keys.END)
    assert timeline.get_attribute("data-right") == "live"
    assert page.data("paused") == "false" and page["connection"].text == "live"
    page["pause"].click()
    assert page.data("paused") == "true"


def test_everything_is_reached_with_the_tab_key(page: Page) -> None:
    reached = []
    for _ in range(40):
        page.keys(Keys.TAB)
        active = page.chrome.switch_to.active_element
        reached.append(active.get_attribute("id") or active.get_attribute("data-chip") or active.tag_name)
    wanted = ["theme", "0", "pause", "zoom-in", "zoom-out", "timeline", "plan-each", "open-id"]
    assert [name for name in reached if name in wanted][: len(wanted)] == wanted
    # The board is one stop; arrows move inside it.
    page.all("#board .chip")[0].send_keys(Keys.ARROW_RIGHT)
    page.keys(Keys.ARROW_DOWN)
    assert page.chrome.switch_to.active_element.get_attribute("data-chip") == "5"
    page.until("no details", lambda: page["chip-details"].text.startswith("chip 5, row 1, column 1"))
    page.keys(Keys.ENTER)
    assert "chip 5" in page["filter"].text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_its_window(page: Page, scheme: str) -> None:
    page.like(scheme)
    page.ticks()
    choose_activity(page)
    page["timeline"].send_keys(Keys.ENTER)
    until_request(page)
    assert page.script("return innerWidth") == WIDTH
    assert page.script("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    ground = page.script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(int(part) for part in ground[4:-1].split(",")) > 380) == (scheme == "light")


def test_the_theme_can_be_chosen_and_is_kept(page: Page) -> None:
    page.like("light")
    ground = "return getComputedStyle(document.body).backgroundColor"
    light = page.script(ground)
    page["theme"].click()
    assert page.script(ground) == light
    page["theme"].click()
    dark = page.script(ground)
    assert dark != light
    page.chrome.refresh()
    page.live()
    assert page.script(ground) == dark
