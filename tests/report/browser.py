"""What the tests of pages ask of a browser."""


def look_like(browser, *, width: int, scheme: str = "light") -> None:
    """Set the width of the window in pixels, and the preferred colour scheme."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 1000},
    )
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
