from __future__ import annotations

import pytest
from finetune_cli.errors import UsageError
from finetune_cli.report.page import safe_page

from tests.support.repository import ROOT


def test_a_page_gets_a_policy_before_anything_else() -> None:
    page = safe_page(b"<!DOCTYPE html>\n<p onclick='steal()'>text</p>")
    policy, _, rest = page.partition(b"\n<!DOCTYPE html>\n")
    assert b"default-src 'none'" in policy
    assert rest == b"<p onclick='steal()'>text</p>"


@pytest.mark.parametrize(
    "tag",
    [
        "<script>alert(1)</script>",
        "<SCRIPT\nsrc=//example.com>",
        "< iframe srcdoc=x>",
        "<object data=x>",
        "<base href=//example.com/>",
        "<form action=//example.com>",
        "<link rel=stylesheet href=//example.com>",
        '<meta http-equiv="refresh" content="0;url=//example.com">',
        "<meta content='0;url=//example.com' http-equiv=REFRESH>",
    ],
)
def test_a_page_that_the_trainer_did_not_write_is_refused(tag: str) -> None:
    with pytest.raises(UsageError, match="no tag that runs or loads anything"):
        safe_page(b"<!DOCTYPE html><p>fine</p>" + tag.encode())


def test_text_that_looks_like_tags_is_no_reason_to_refuse_a_page() -> None:
    assert b"&lt;script&gt;" in safe_page(b"<p>&lt;script&gt;alert(1)&lt;/script&gt;</p>")


@pytest.mark.parametrize("name", ["job_page", "page", "evaluation_page", "merge_page"])
def test_the_trainers_own_pages_have_no_such_tag(name: str) -> None:
    folder = ROOT / "trainer_image/src/finetune_trainer/report"
    text = (folder / f"{name}.html.jinja").read_bytes()
    assert safe_page(text).endswith(text)
