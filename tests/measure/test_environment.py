# SPDX-License-Identifier: Apache-2.0
"""The environment names what measurements depend on."""

import json
import platform
from pathlib import Path

import pytest
import torch

import rarefy
from rarefy.measure import environment as page
from rarefy.measure.environment import environment


def test_versions_and_settings() -> None:
    found = environment(threads=3)
    assert found["threads"] == 3
    assert found["rarefy"] == rarefy.__version__
    assert found["torch"] == torch.__version__.split("+")[0]
    assert found["python"] == platform.python_version()
    assert found["cores"] >= 1
    assert found["processor"]
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ("text", "processor", "instructions"),
    [
        (
            "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nflags\t: fpu avx2 avx512_vnni sse\n\n"
            "processor\t: 1\nmodel name\t: Another\n",
            "Some CPU @ 2 GHz",
            ["avx2", "avx512_vnni"],
        ),
        ("processor : 0\nFeatures : fp asimd i8mm\n", None, ["asimd", "i8mm"]),
        (None, None, []),
    ],
)
def test_the_processor_as_the_kernel_describes_it(
    text: str | None,
    processor: str | None,
    instructions: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    described = tmp_path / "cpuinfo"
    if text is not None:
        described.write_text(text)
    monkeypatch.setattr(page, "PROCESSOR", described)
    found = environment(1)
    assert found["processor"] == (processor or platform.processor() or platform.machine())
    assert found["instructions"] == instructions
