"""The dashboard in a browser, as somebody sees it who looks at it and presses keys."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from running import PATIENCE

WIDTH, HEIGHT = 1280, 800
SWITCHES = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")


def browser(profile: Path) -> webdriver.Chrome:
    """A browser without a window that fetches nothing but what it is told."""
    options = webdriver.ChromeOptions()
    options.binary_location = os.environ.get("CHROMIUM", "/usr/bin/chromium")
    for switch in (*SWITCHES, f"--user-data-dir={profile}", f"--window-size={WIDTH},{HEIGHT}"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = os.environ.get("CHROMEDRIVER", "/usr/bin/chromedriver")
    chrome = webdriver.Chrome(options=options, service=Service(executable_path=driver))
    # The page itself is as large as the window would be.
    size = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    return chrome


class Page:
    """One visit of the dashboard."""

    def __init__(self, chrome: webdriver.Chrome, url: str):
        self.chrome = chrome
        chrome.get_log("browser")  # what earlier visits left there
        chrome.get(url)

    def until(self, what: str, condition: Callable[[], Any]) -> Any:
        """Waits for a condition, and gives what it gave."""
        wait = WebDriverWait(self.chrome, PATIENCE, 0.05, ignored_exceptions=[StaleElementReferenceException])
        return wait.until(lambda _: condition(), what)

    def live(self) -> Page:
        """Waits until ticks come."""
        self.until("the page does not become live", lambda: self.data("connection") == "live" and self.number("ticks") > 0)
        return self

    def ticks(self, more: int = 2) -> None:
        """Waits for more ticks."""
        target = self.number("ticks") + more
        self.until("no ticks", lambda: self.number("ticks") >= target)

    def data(self, name: str) -> str:
        """What the page says of itself, for those who cannot look at canvases."""
        return self.chrome.find_element(By.TAG_NAME, "body").get_attribute(f"data-{name}") or ""

    def number(self, name: str) -> float:
        return float(self.data(name) or 0)

    def __getitem__(self, id: str) -> WebElement:
        return self.chrome.find_element(By.ID, id)

    def all(self, selector: str) -> list[WebElement]:
        return self.chrome.find_elements(By.CSS_SELECTOR, selector)

    def script(self, text: str, *arguments: Any) -> Any:
        """What a script returns; it may wait."""
        return self.chrome.execute_script(f"return (async () => {{ {text} }})()", *arguments)

    def click_first(self, selector: str) -> str | None:
        """Clicks the first of these within the page, because lists are written anew all the time; gives its title."""
        return self.script(
            "const first = document.querySelector(arguments[0]); first?.click(); return first?.title ?? null", selector
        )

    def keys(self, *keys: str) -> None:
        """Presses keys wherever the focus is."""
        ActionChains(self.chrome).send_keys(*keys).perform()

    def click_at(self, element: WebElement, x: float, y: float) -> None:
        """Clicks at a point of an element, counted from its top left."""
        box = element.rect
        right, down = round(x - box["width"] / 2), round(y - box["height"] / 2)
        ActionChains(self.chrome).move_to_element_with_offset(element, right, down).click().perform()

    def like(self, scheme: str) -> None:
        """The system prefers `light` or `dark` from now on."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def errors(self) -> list[str]:
        """What went wrong in the page since the last question."""
        return [entry["message"] for entry in self.chrome.get_log("browser") if entry["level"] == "SEVERE"]
