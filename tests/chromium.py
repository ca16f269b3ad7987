"""A real headless Chromium, driven over chromedriver's HTTP protocol.

It needs nothing but the standard library.
"""

import contextlib
import json
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
DRIVER = shutil.which("chromedriver")
MISSING = (
    None if CHROMIUM and DRIVER else "no Chromium here: apt-get install chromium chromium-driver"
)

FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]


class Browser:
    """One session."""

    def __init__(self, url: str, profile: Path) -> None:
        self.url = url
        options = {"binary": CHROMIUM, "args": [*FLAGS, f"--user-data-dir={profile}"]}
        wanted: dict[str, Any] = {"browserName": "chrome", "goog:chromeOptions": options}
        wanted["goog:loggingPrefs"] = {"browser": "ALL", "performance": "ALL"}
        found = self.call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self.session = f"/session/{found['sessionId']}"

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """The driver's answer."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data, {"Content-Type": "application/json"}, method=method
        )
        with urllib.request.urlopen(request, timeout=200) as answer:
            return json.load(answer)["value"]

    def devtools(self, command: str, **parameters: Any) -> Any:
        """One command of the DevTools protocol."""
        return self.call(
            "POST", f"{self.session}/goog/cdp/execute", {"cmd": command, "params": parameters}
        )

    def show(self, path: Path, width: int = 1280, scheme: str = "light") -> None:
        """Open a file at that width, in the light or the dark scheme."""
        self.call("POST", f"{self.session}/url", {"url": "about:blank"})
        for kind in ("browser", "performance"):
            self.log(kind)
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.devtools(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )
        self.call("POST", f"{self.session}/url", {"url": path.resolve().as_uri()})
        # On a busy machine the page may be there in part.
        whole = (
            "const [done] = arguments; "
            "document.readyState === 'complete' ? done() : onload = () => done()"
        )
        self.call("POST", f"{self.session}/execute/async", {"script": whole, "args": []})

    def evaluate(self, script: str) -> Any:
        """What a function body returns in the page."""
        return self.call("POST", f"{self.session}/execute/sync", {"script": script, "args": []})

    def log(self, kind: str) -> list[dict[str, Any]]:
        """Entries since the last call: of the console, "browser", or the network, "performance"."""
        return self.call("POST", f"{self.session}/se/log", {"type": kind})

    def requests(self) -> list[str]:
        """Every address that the page asked for since `show`."""
        urls = []
        for entry in self.log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] != "Network.requestWillBeSent":
                continue
            url = message["params"]["request"]["url"]
            if not url.startswith("data:"):
                urls.append(url)

        return urls


@contextlib.contextmanager
def open_browser(folder: Path) -> Iterator[Browser]:
    """A browser with a profile of its own below `folder`."""
    driver = subprocess.Popen(
        [DRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        found = next(
            filter(None, (re.search(r"successfully on port (\d+)", line) for line in driver.stdout))
        )
        browser = Browser(f"http://127.0.0.1:{found[1]}", folder / "profile")
        try:
            yield browser
        finally:
            browser.call("DELETE", browser.session)
    finally:
        driver.terminate()
        driver.communicate(timeout=60)
