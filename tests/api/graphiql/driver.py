"""GraphiQL as a person uses it, in a real browser."""

import json
import tempfile
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from selenium.common.exceptions import TimeoutException
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

PATIENCE_S = 60

RESPONSE = "response.json"
QUERY = "operation.graphql"
VARIABLES = "variables.json"


class GraphiQL:
    """One open page. Every wait ends after PATIENCE_S and fails the test with a picture."""

    def __init__(self, chromium: Chrome, base_url: str) -> None:
        self.chromium = chromium
        self.base_url = base_url.rstrip("/")

    def open(self) -> "GraphiQL":
        """Load the page and wait until its editors and the schema are there."""
        self.chromium.get(f"{self.base_url}/graphql")
        self.until("window.__MONACO && __MONACO.editor.getModels().length >= 4")
        self.until("document.querySelector('.graphiql-execute-button')")
        self.until("!document.querySelector('.graphiql-spinner')")
        return self

    def until(self, condition: str) -> Any:
        """Wait until a JavaScript expression is true."""
        script = f"return Boolean({condition})"
        wait = WebDriverWait(self.chromium, PATIENCE_S, poll_frequency=0.05)
        try:
            return wait.until(lambda chromium: chromium.execute_script(script))
        except TimeoutException:
            picture = Path(tempfile.gettempdir()) / f"graphiql-{uuid4()}.png"
            self.chromium.save_screenshot(str(picture))
            pytest.fail(f"Not within {PATIENCE_S} s: {condition}; the page: {picture}")

    def find(self, selector: str) -> WebElement:
        """Wait for an element."""
        self.until(f"document.querySelector({json.dumps(selector)})")
        return self.chromium.find_element(By.CSS_SELECTOR, selector)

    def click(self, selector: str) -> None:
        """Wait until an element can be clicked, and click it."""
        selected = json.dumps(selector)
        self.until(
            f"document.querySelector({selected}) && !document.querySelector({selected}).disabled"
        )
        self.find(selector).click()

    def press(self, text: str, within: str = ".noo-panel") -> None:
        """Click the button with this text."""
        xpath = f"//*[contains(@class, '{within[1:]}')]//button[normalize-space()='{text}']"
        WebDriverWait(self.chromium, PATIENCE_S).until(
            lambda chromium: chromium.find_elements(By.XPATH, xpath), text
        )[0].click()

    def text_of(self, editor: str) -> str:
        """Give what one of the editors holds."""
        return str(self.chromium.execute_script(f"return {_value(editor)}"))

    def type_query(self, query: str) -> None:
        """Replace the query by typing into the editor as a person would, key by key."""
        area = self.find(".graphiql-query-editor .monaco-editor")
        area.click()
        self.chromium.execute_script(
            "__MONACO.editor.getEditors()"
            f".find((one) => one.getModel()?.uri.path.endsWith('{QUERY}')).getModel().setValue('')"
        )
        self.chromium.switch_to.active_element.send_keys(query)

    def write(self, editor: str, text: str) -> None:
        """Replace what an editor holds, at once."""
        self.chromium.execute_script(
            f"__MONACO.editor.getModels().find((one) => one.uri.path.endsWith('{editor}'))"
            ".setValue(arguments[0])",
            text,
        )

    def run(self) -> None:
        """Press the Execute button."""
        self.click(".graphiql-execute-button[aria-label^='Execute']")

    def stop(self) -> None:
        """Press the Stop button."""
        self.click(".graphiql-execute-button[aria-label^='Stop']")

    def run_all(self) -> None:
        """Press the button that runs all operations of the tab in order."""
        self.click(".noo-run-all")

    def response(self, containing: str = '"data"') -> Any:
        """Wait for a response that is complete JSON with this text, and give it."""
        quoted = json.dumps(containing)
        self.until(f"{_value(RESPONSE)}.includes({quoted})")
        return json.loads(self.text_of(RESPONSE))

    def tab(self, title: str) -> None:
        """Bring the tab with this title to the front."""
        buttons = "[...document.querySelectorAll('.graphiql-tab-button')]"
        button = f"{buttons}.find((one) => one.title === {json.dumps(title)})"
        self.until(button)
        self.chromium.execute_script(f"{button}.click()")
        self.until(f"{button}.closest('.graphiql-tab').classList.contains('graphiql-tab-active')")

    def tabs(self) -> list[str]:
        """Give the titles of the tabs."""
        return [one.text for one in self.chromium.find_elements(By.CSS_SELECTOR, ".graphiql-tab")]

    def stream(self, name: str, state: str, at_least: int = 0) -> None:
        """Wait until a stream is in a state, with at least so many events."""
        chip = f"document.querySelector('.noo-chip[data-stream={name}][data-status={state}]')"
        self.until(
            f"{chip} && Number({chip}.querySelector('.noo-count').textContent) >= {at_least}"
        )

    def choose_stream(self, name: str) -> None:
        """Show a stream's events."""
        self.click(f".noo-chip[data-stream={name}]")

    def events(self) -> list[tuple[str, str, float]]:
        """Give type, text and time in s of the events shown, oldest first."""
        rows = self.chromium.execute_script(
            "return [...document.querySelectorAll('.noo-event[data-type]')].map((row) => "
            "[row.dataset.type, row.querySelector('.noo-text').textContent, "
            "row.querySelector('time').textContent])"
        )
        return [(kind, text, float(time.strip("+ s"))) for kind, text, time in rows]

    def event(self, kind: str) -> None:
        """Wait until an event of a type is shown."""
        self.until(f"document.querySelector('.noo-event[data-type={kind}]')")

    def fill_form(self, **values: str) -> None:
        """Type into the sign-in helper's form, and submit it."""
        for name, value in values.items():
            self.find(f".noo-form input[name={name}]").send_keys(value)
        self.find(".noo-form button[type=submit]").click()

    def account(self) -> str:
        """Wait until somebody is signed in, and give the user name."""
        self.until("document.querySelector('[data-testid=who]')?.textContent.length > 1")
        return self.find("[data-testid=who]").text

    def stored(self, key: str) -> Any:
        """Give a value of the page's localStorage, parsed."""
        text = self.chromium.execute_script("return localStorage.getItem(arguments[0])", key)
        return None if text is None else json.loads(text)

    def requests(self) -> list[str]:
        """Give the URLs this page has asked for since the last call, WebSockets included."""
        urls: list[str] = []
        for entry in self.chromium.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                urls.append(message["params"]["request"]["url"])
            elif message["method"] == "Network.webSocketCreated":
                urls.append(message["params"]["url"])
        return urls

    def complaints(self) -> list[str]:
        """Give what the browser's console holds, at level warning or above."""
        entries = self.chromium.get_log("browser")
        return [one["message"] for one in entries if one["level"] in {"WARNING", "SEVERE"}]


def _value(editor: str) -> str:
    return (
        "(__MONACO.editor.getModels()"
        f".find((one) => one.uri.path.endsWith('{editor}'))?.getValue() ?? '')"
    )
