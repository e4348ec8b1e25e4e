"""Headless Chromium that keeps to itself: no proxy, no updates, no profile left behind."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from selenium.webdriver import Chrome
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

_FLAGS = (
    "--headless=new",
    # Chromium's own sandbox refuses root, who CI is; what it loads is our own page.
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--no-first-run",
    "--no-default-browser-check",
    "--no-proxy-server",
    "--window-size=1280,900",
)
_PAGE_LOAD_TIMEOUT_S = 60.0

OpenChromium = Callable[[], Chrome]


@contextlib.contextmanager
def open_chromium(environment: dict[str, str]) -> Iterator[OpenChromium]:
    """Give a function that opens one more browser; all are closed after the block."""
    with contextlib.ExitStack() as stack:

        def opening() -> Chrome:
            home = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
            )
            browser = _open(environment, Path(home))
            stack.callback(browser.quit)
            return browser

        yield opening


def _open(environment: dict[str, str], home: Path) -> Chrome:
    options = Options()
    options.binary_location = environment["NOOSPHERE_TEST_BROWSER"]
    for flag in (*_FLAGS, f"--user-data-dir={home}"):
        options.add_argument(flag)
    # `get_log("browser")` gives what a page says, `get_log("performance")` what it asks for.
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # With both paths given, Selenium looks for nothing and downloads nothing.
    service = Service(
        executable_path=environment["NOOSPHERE_TEST_CHROMEDRIVER"],
        log_output=str(home / "chromedriver.log"),
    )
    browser = Chrome(options=options, service=service)
    browser.set_page_load_timeout(_PAGE_LOAD_TIMEOUT_S)
    return browser
