"""The page: self-contained, safe from what names hold, and the same for the same results."""

import base64
import hashlib
import re

from tests.helpers.finished_runs import Page, report, table_of, write_run


def test_names_and_descriptions_are_text_whatever_they_hold(tmp_path):
    nasty = ["<script>alert(1)</script>", "$\\frac{$", "a|b & <b>", "_x [y](http://z.example)"]
    description = (
        "| *x* <script>alert(2)</script> [link](http://z.example) ![i](http://z.example/i.png)"
    )
    write_run(tmp_path / "run <b>", classes=nasty, description=description)
    markdown, page = report(tmp_path)
    parsed = Page(page)
    assert not {"b", "img", "em"} & set(parsed.tags) and parsed.tags.count("script") == 1
    assert parsed.tags.count("a") == 1 and "run%20%3Cb%3E" in parsed.addresses, "its folder"
    texts = " ".join(parsed.texts)
    assert "<script>alert(2)</script> [link](http://z.example)" in texts and "run <b>" in texts
    assert "$\\frac{$" in texts and "a|b & <b>" in texts, "class names on the axes"
    assert "<script" not in markdown.replace("\\<script", "")
    assert table_of(markdown)["run \\<b\\>"]["top-1"] == "70.0"


def test_page_needs_nothing_else(tmp_path):
    write_run(tmp_path / "ce", reference_error=29.64)
    _, page = report(tmp_path)
    parsed = Page(page)
    assert parsed.tags.count("svg") == 5, "reference, groups, classes, training, confusion"
    inside = ("#", "data:image/png;base64,")
    others = [address for address in parsed.addresses if not address.startswith(inside)]
    assert others == ["ce"], "the run's folder beside it"
    assert not re.findall(r"https?:", re.sub(r'xmlns(:\w+)?="[^"]*"', "", page))
    assert not {"link", "iframe", "object"} & set(parsed.tags)
    (script,) = re.findall("<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page, "the browser runs it, and no other"
    assert "prefers-color-scheme: dark" in page and "currentColor" in page and "#010203" not in page
    ids = re.findall(r'\bid="(.*?)"', page)
    assert len(ids) == len(set(ids))


def test_the_same_results_give_the_same_bytes(tmp_path):
    write_run(tmp_path / "ce", reference_error=29.64)
    assert report(tmp_path) == report(tmp_path)
