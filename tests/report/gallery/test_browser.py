"""The gallery in a real browser; see the fixture in tests/report/conftest.py."""

import pytest

from pcd_hub.report.gallery.write import render_gallery
from tests.report.browser import look_like

pytestmark = pytest.mark.browser


@pytest.fixture
def page(browser, entries, tmp_path):
    file = tmp_path / "index.html"
    file.write_text(render_gallery(entries))
    look_like(browser, width=1280)
    browser.get_log("browser")
    browser.get(file.as_uri())
    yield browser
    assert browser.get_log("browser") == []


def names(page):
    return [row.text for row in page.find_elements("css selector", "tbody th") if row.text]


def head(page, label):
    return page.find_element("xpath", f"//button[text()='{label}']")


def test_it_sorts_by_numbers_and_what_is_not_known_stays_last(page):
    assert names(page) == ["a.pcd", "b.pcd", "c.pcd"]
    head(page, "parameters, M").click()
    assert names(page) == ["b.pcd", "c.pcd", "a.pcd"]
    head(page, "parameters, M").click()
    assert names(page) == ["a.pcd", "c.pcd", "b.pcd"]
    cell = page.find_element("css selector", "[aria-sort]")
    assert cell.get_attribute("aria-sort") == "descending"
    for order in (["a.pcd", "b.pcd", "c.pcd"], ["b.pcd", "a.pcd", "c.pcd"]):
        head(page, "mean IoU, VOC (probe)").click()  # 9.5 is less than 40
        assert names(page) == order


def test_it_filters_the_table_and_the_sections(page):
    page.find_element("id", "filter").send_keys("vit b.")
    assert names(page) == ["b.pcd"]
    shown = [one.text for one in page.find_elements("css selector", "h2") if one.is_displayed()]
    assert shown == ["b.pcd"]
    assert page.find_element("id", "count").text == "1 of 3 weights"
    page.find_element("id", "filter").clear()
    page.find_element("id", "filter").send_keys(" ")
    page.find_element("xpath", "//option[text()='apache-2.0']").click()
    assert names(page) == ["a.pcd"]


def test_the_keyboard_is_enough(page):
    from selenium.webdriver.common.keys import Keys

    page.find_element("id", "filter").send_keys(Keys.TAB)
    active = page.switch_to.active_element
    assert active.tag_name == "select"
    for _ in range(2):  # the scrolling box of the table, then its first button
        active.send_keys(Keys.TAB)
        active = page.switch_to.active_element
    assert active.text == "weight"
    active.send_keys(Keys.ENTER)
    active.send_keys(Keys.SPACE)
    assert names(page) == ["c.pcd", "b.pcd", "a.pcd"]


@pytest.mark.parametrize("width", [320, 1280])
def test_it_fits(page, width):
    look_like(page, width=width)
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
