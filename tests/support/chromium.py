"""A Chromium for the browser tests: the one that is installed, else one that gets installed.

Run as a program it installs: Playwright's own download first; where that does not start, and we
are root on Debian, the distribution's package.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_chromium() -> str | None:
    """Return the path of a Chromium or Chrome that starts, or None."""
    installed = (shutil.which(name) for name in _NAMES)
    return next((path for path in [*installed, _playwright_chromium()] if _starts(path)), None)


def install_chromium() -> str | None:
    """Return a Chromium, installing one if there is none."""
    if found := find_chromium():
        return found
    subprocess.run([sys.executable, "-m", "playwright", "install", "chromium"], check=False)
    if found := find_chromium():
        return found
    if os.geteuid() == 0 and shutil.which("apt-get"):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update", "-qq"], ["install", "-y", "-qq", "chromium"]):
            subprocess.run(["apt-get", *command], check=False, env=environment)
    return find_chromium()


def _playwright_chromium() -> str | None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if Path(path).exists() else None


def _starts(path: str | None) -> bool:
    """Tell whether the browser starts: a download may lack the system's libraries."""
    if path is None:
        return False
    return subprocess.run([path, "--version"], capture_output=True).returncode == 0


if __name__ == "__main__":
    found = install_chromium()
    print(f"Browser tests use {found}." if found else "No Chromium: browser tests cannot run.")
