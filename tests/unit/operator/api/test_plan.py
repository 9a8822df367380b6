from __future__ import annotations

import pytest
from finetune_operator.api.plan import ONE_GPU, Layout


@pytest.mark.parametrize(("layout", "gpus"), [(ONE_GPU, 1), (Layout(1, 8), 8), (Layout(4, 2), 8)])
def test_a_layout_has_the_gpus_of_all_pods(layout: Layout, gpus: int) -> None:
    assert layout.gpus == gpus
