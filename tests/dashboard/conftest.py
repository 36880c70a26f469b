"""What the tests share: one browser, and one server under load."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from selenium import webdriver

from page import Page, browser
from running import Load, Server, binary


def pytest_report_header() -> str:
    return f"binary: {binary()}"


@pytest.fixture(scope="session")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    driver = browser(tmp_path_factory.mktemp("profile"))
    yield driver
    driver.quit()


@pytest.fixture(scope="session")
def galaxy() -> Iterator[Server]:
    """A server with robots that all tests may look at and none may stop."""
    with Server() as server, Load(server):
        yield server


@pytest.fixture
def page(chrome: webdriver.Chrome, galaxy: Server) -> Iterator[Page]:
    """A visit that is live; nothing may have gone wrong in it that the test did not ask about."""
    visit = Page(chrome, galaxy.dashboard).live()
    yield visit
    assert visit.errors() == []
    visit.script("localStorage.clear(); sessionStorage.clear()")
    chrome.get("about:blank")
