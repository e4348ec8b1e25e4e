"""Chromium and the driver that fits it, so that nothing has to be downloaded for them."""

from tests.servers.base import Place, UnavailableError, program
from tests.servers.packages import install

PER_WORKER = False

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")


async def start(place: Place) -> dict[str, str]:
    """Give the paths of a browser and of its driver."""
    if program(*_BROWSERS) is None or program("chromedriver") is None:
        packages = ["chromium", "chromium-driver"]
        await install(place, packages, "chromium or chromedriver not found")
    browser, driver = program(*_BROWSERS), program("chromedriver")
    if browser is None or driver is None:
        raise UnavailableError("the packages were installed, but not chromium and chromedriver")
    return {"NOOSPHERE_TEST_BROWSER": browser, "NOOSPHERE_TEST_CHROMEDRIVER": driver}
