# SPDX-License-Identifier: Apache-2.0
"""What a step left alone is told where the user looks: in the measurements and in the report."""

from pathlib import Path

import torch
from torch import Tensor, nn

from rarefy.measure.evidence import remarks
from rarefy.prune.prune_channels import PruneChannels
from rarefy.search.compress import compress
from rarefy.task import Task


class Numbered(nn.Module):
    """Its code writes one of its sizes down as a number; the other layers are free."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(64, 8), nn.Linear(8, 12), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x.flatten(1)).reshape(-1, 8)).relu())


def test_channels_that_the_code_counts_are_named_in_the_report(
    digits_task: Task, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    result = compress(Numbered(), digits_task, [PruneChannels(sparsity=0.5, allocation="local")])
    step = "PruneChannels(allocation='local')"
    assert result.document["notes"] == [
        f"{step}: channels stay that meet reshape with sizes written as numbers (1 times)",
        f"{step}: all channels of a.weight stay: view needs them all",
    ]
    result.save(tmp_path / "out")
    assert "reshape with sizes written as numbers" in (tmp_path / "out/report.html").read_text()
    result.workspace.cleanup()


def test_groups_that_were_spared_are_told_by_their_reason() -> None:
    record = {
        "notes": ["one"],
        "spared": {
            "d": "it fails",
            "a": "no proof",
            "b": "no proof",
            "e": "no proof",
            "f": "no proof",
        },
        "barriers": ["channels stay that meet sort (2 times)"],
    }
    assert remarks({"measurement": {"name": "Step()"}, "record": record}) == [
        "one",
        "Step() left 'd' whole: it fails",
        "Step() left 'a', 'b', 'e' and 1 more whole: no proof",
        "Step(): channels stay that meet sort (2 times)",
    ]
