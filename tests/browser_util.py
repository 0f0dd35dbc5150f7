"""A page in a real browser: headless Chromium, as Debian packages it, driven by Selenium."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_chromium = pytest.mark.skipif(
    not (CHROMIUM and DRIVER and importlib.util.find_spec("selenium")),
    reason="no headless browser: apt-get install chromium chromium-driver, and pip install selenium",
)


@contextmanager
def opened(page: Path, width: int = 1400, scheme: str = "light") -> Generator[Any]:
    """The page in a window of that width, drawn to its end; the driver of the browser."""
    from selenium import webdriver
    from selenium.webdriver.support.wait import WebDriverWait

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    options.add_argument("--headless=new")
    options.add_argument("--no-sandbox")  # tests run as root in containers
    options.add_argument("--disable-dev-shm-usage")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(str(DRIVER)))
    try:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        driver.get(page.resolve().as_uri())
        drawn = "return [...document.querySelectorAll('.chart')].every(chart => chart.querySelector('svg'))"
        WebDriverWait(driver, 60).until(lambda d: d.execute_script(drawn))
        yield driver
    finally:
        driver.quit()


def complaints(driver: Any) -> list[str]:
    """What the page said on the console: errors, warnings, anything."""
    return [entry["message"] for entry in driver.get_log("browser")]


def requests(driver: Any) -> list[str]:
    """What the page asked for but itself and what stands in it."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return [url for url in urls if not url.startswith("data:") and url != driver.current_url.partition("#")[0]]


def loaded_in(driver: Any) -> float:
    """Milliseconds that the page takes when it is opened again, charts drawn."""
    from selenium.webdriver.support.wait import WebDriverWait

    driver.get(driver.current_url)
    drawn = (  # Vega draws after the load event, chart by chart
        "const charts = [...document.querySelectorAll('.chart')];"
        "return charts.length > 0 && charts.every(chart => chart.querySelector('svg')) && performance.now()"
    )
    return WebDriverWait(driver, 20, poll_frequency=0.02).until(lambda page: page.execute_script(drawn))


def keep_screenshot(driver: Any, name: str) -> None:
    """Keep the whole page as a picture where $LOCALSSL_SCREENSHOTS names a folder, to be looked at."""
    folder = os.environ.get("LOCALSSL_SCREENSHOTS")
    if not folder:
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    import base64

    shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "format": "png"})
    (Path(folder) / f"{name}.png").write_bytes(base64.b64decode(shot["data"]))


def _luminance(colour: Sequence[float]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: Sequence[float], other: Sequence[float]) -> float:
    """Of two colours, from 1 to 21 as WCAG has it; each red, green and blue, 0 to 255."""
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)
