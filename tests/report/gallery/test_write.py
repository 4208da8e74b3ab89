import base64
import dataclasses
import hashlib
import re

import pytest

from pcd_hub.errors import ConfigError
from pcd_hub.report.gallery.write import render_gallery, write_gallery
from pcd_hub.weights import store
from tests.report.page.test_render import HOSTILE, Page
from tests.weights.making import exported


def test_the_page_is_written_and_replaced_but_no_other_file(tmp_path):
    store.add("test_resnet.pcd", exported(tmp_path / "export"))
    page, count = write_gallery(tmp_path / "new" / "site")
    assert page.read_text().count("test_resnet.pcd") > 3
    assert write_gallery(tmp_path / "new" / "site") == (page, count)
    page.write_text("mine")
    with pytest.raises(ConfigError, match="index.html exists and is not a page of pcd-hub; name"):
        write_gallery(page.parent)
    (tmp_path / "mine").write_text("a file")
    with pytest.raises(ConfigError, match="cannot write .*mine/index.html .*name another folder"):
        write_gallery(tmp_path / "mine")


def test_without_a_script_it_is_a_table_and_a_section_for_each_weight(entries):
    page = Page(render_gallery(entries))
    assert page.text("h2") == ["a.pcd", "b.pcd", "c.pcd"]
    assert page.text("button") == [
        *("weight", "from", "licence", "parameters, M", "file, MB", "cost, GMACs"),
        "mean IoU, VOC (probe)",
    ]
    assert page.text("td").count("not known") == 3
    assert page.values("disabled") == [""] * 7, "nothing to press before the script has started"
    assert {value[1:] for value in page.values("href") if value[0] == "#"} <= set(page.values("id"))


def test_only_its_own_script_may_run(entries):
    text = render_gallery(entries)
    script = re.search("<script>(.*)</script>", text, re.DOTALL)
    assert script
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert (
        f"script-src &#39;sha256-{digest}&#39;" in text or f"script-src 'sha256-{digest}'" in text
    )


def test_hostile_names_are_text(entries):
    hostile = dataclasses.replace(
        entries[0],
        **dict.fromkeys(("name", "license", "architecture", "teacher", "images"), HOSTILE),
        image_size=HOSTILE,
        scores={HOSTILE: 1.0},
        problems=(HOSTILE,),
    )
    page = Page(render_gallery([hostile]))
    assert page.tags.count("script") == 1
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert "img" not in page.tags


def test_no_weights_are_said():
    assert "No weights are known: <code>pcd-hub distill DIR</code>" in render_gallery([])
