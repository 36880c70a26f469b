"""The dashboard of a server that goes away, and of one that does not let everybody in."""

from __future__ import annotations

from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.keys import Keys

from page import Page
from running import Load, Server


def test_a_server_that_was_restarted_is_found_again(chrome: webdriver.Chrome) -> None:
    with Server() as first, Load(first):
        page = Page(chrome, first.dashboard).live()
        page.until("nothing is answered", lambda: page.number("answered") > 20)
        page.keys(" ")
        run, port = page.data("run"), first.port
        first.kill()
        page.until("the page does not notice", lambda: page.data("connection") == "reconnecting")
        assert page["connection"].text == "reconnecting"
    with Server(port=port) as second, Load(second):
        page.until("the page does not come back", lambda: page.data("connection") == "live")
        page.until("it takes the server for the old one", lambda: page.data("run") not in ("", run))
        assert page["restarted"].is_displayed() and "restarted" in page["restarted"].text
        assert page.all("header")[0].rect["height"] < 60, "the head takes more than a line"
        # What was paused is gone with the old server.
        assert page.data("paused") == "false"
        page.until("nothing is answered", lambda: page.number("answered") > 0 and page.number("blocks") > 0)
    assert all("ERR_" in error for error in page.errors())


def test_an_api_key_is_asked_for(chrome: webdriver.Chrome, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("the-right-key\n")
    with Server("--api-keys", keys) as server, Load(server, key="the-right-key"):
        page = Page(chrome, server.dashboard)
        page.until("no question", lambda: page["key-dialog"].is_displayed())
        assert page.data("connection") == "refused"
        assert page["key"].get_attribute("type") == "password"
        page["key"].send_keys("a-wrong-key", Keys.ENTER)
        page.until("no second question", lambda: page["key-dialog"].is_displayed() and "not know" in page["key-why"].text)
        page["key"].send_keys("the-right-key", Keys.ENTER)
        page.live()
        assert not page["key-dialog"].is_displayed()
        page.until("nothing is answered", lambda: page.number("answered") > 0)
        # Requests need the key as well.
        page.until("no requests", lambda: page.click_first("#slow button"))
        page.until("no request is shown", lambda: page["request-panel"].get_attribute("data-latency"))
        # It is kept for this tab, and nowhere else.
        page.chrome.refresh()
        page.live()
        assert "the-right-key" not in page.script("return JSON.stringify(localStorage) + location.href")
    assert all("401" in error or "ERR_" in error for error in page.errors())
