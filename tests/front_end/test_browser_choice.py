"""Which browser the browser tests use: Playwright's own or the system's; without any they say what to install."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from playwright.sync_api import Error

from browser.front_end import launch

# As Playwright 1.65 says it.
MISSING = Error("BrowserType.launch: Executable doesn't exist at /home/me/.cache/ms-playwright/chromium/chrome\n╔══")
NO_CHANNEL = Error("BrowserType.launch: Chromium distribution 'chrome' is not found at /opt/google/chrome/chrome")


def _machine(installed: dict[str, Any], broken: Error | None = None) -> SimpleNamespace:
    """A Playwright on a machine where a browser starts for these launch options alone."""

    def start(args: list[str], **options: Any) -> str:
        if broken:
            raise broken
        if options == installed:
            return "a browser"
        raise NO_CHANNEL if "channel" in options else MISSING

    return SimpleNamespace(chromium=SimpleNamespace(launch=start))


@pytest.fixture
def chromium(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The only program on the PATH."""
    program = tmp_path / "chromium"
    program.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PATHEXT", "")
    return str(program)


@pytest.mark.parametrize("installed", [{}, {"channel": "chrome"}, {"channel": "msedge"}], ids=str)
def test_playwrights_own_and_installed_browsers_are_found(installed: dict[str, Any]) -> None:
    assert launch(_machine(installed)) == "a browser"


def test_a_chromium_on_the_path_is_found(chromium: str) -> None:
    assert launch(_machine({"executable_path": chromium})) == "a browser"


def test_without_a_browser_the_tests_are_skipped_and_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(pytest.skip.Exception, match="playwright install chromium.*Chrome"):
        launch(_machine({"channel": "none of these"}))


def test_a_browser_that_does_not_start_is_an_error_and_no_skip() -> None:
    with pytest.raises(Error, match="libnss3"):
        launch(_machine({}, broken=Error("BrowserType.launch: error while loading shared libraries: libnss3.so")))
