"""The pages in a real browser; see the fixture in tests/report/conftest.py."""

import pytest

from pcd_hub.report.page.write import report_runs
from tests.report.browser import look_like
from tests.report.page.making import finished_run

pytestmark = pytest.mark.browser

LONG = "a_name_without_any_place_to_break_it_" * 8
STATE = """
const images = [...document.images];
return {
    width: document.documentElement.scrollWidth,  // innerWidth grows with it on a telephone
    images: images.length,
    broken: images.filter(one => !(one.complete && one.naturalWidth > 0)).length,
    background: getComputedStyle(document.body).backgroundColor,
    smallest: Math.min(...[...document.querySelectorAll("svg")].map(one => one.clientWidth)),
};
"""


@pytest.fixture
def pages(tmp_path):
    data = {"source": LONG, "fingerprint": LONG, "images": 200}
    runs = [finished_run(tmp_path / name, data=data) for name in ("one", "two", "three")]
    for run in runs:  # code that is longer than a telephone is wide
        (run / "export").mkdir()
        (run / "export" / "pcd_manifest.json").write_text("{}")
    return [report_runs(runs[:1]), report_runs(runs, tmp_path / "comparison.html")]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_the_pages_fit_and_show_their_pictures(browser, pages, width, scheme):
    look_like(browser, width=width, scheme=scheme)
    for page, num_images in zip(pages, (10, 24), strict=True):
        browser.get(page.as_uri())
        for details in browser.find_elements("tag name", "details"):
            browser.execute_script("arguments[0].open = true", details)
        state = browser.execute_script(STATE)
        assert state["width"] <= width, "the page scrolls sideways"
        assert (state["images"], state["broken"]) == (num_images, 0)
        assert (
            state["background"]
            == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}[scheme]
        )
        assert state["smallest"] >= 200
        assert browser.get_log("browser") == []


def test_what_scrolls_is_reached_by_the_keyboard(browser, pages):
    browser.get(pages[0].as_uri())
    unreachable = """
    return [...document.querySelectorAll("*")].filter(one =>
        ["auto", "scroll"].includes(getComputedStyle(one).overflowX)
        && one.tabIndex < 0 && one !== document.documentElement).length;
    """
    assert browser.execute_script(unreachable) == 0
