"""Files that are damaged or forged: each is refused by name, or read as another reader reads it; none hangs or crashes.

A few hundred mutations here, ten thousand of each kind by `make test-long`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.batch import run

KINDS = ["tars", "jsons", "parquets", "arrows", "selections"]
_FEW, _MANY, _AT_ONCE = 75, 10_000, 500


def test_a_few_hundred_mutations(tmp_path: Path) -> None:
    for ends in run(KINDS, tmp_path, 0, _FEW).values():
        assert min(ends["read"], ends["refused"]) > 5


@pytest.mark.long
@pytest.mark.timeout(3 * 3600)
@pytest.mark.parametrize("kind", KINDS)
def test_ten_thousand_mutations(kind: str, tmp_path: Path) -> None:
    for first in range(0, _MANY, _AT_ONCE):
        ends = run([kind], tmp_path, first, _AT_ONCE)[kind]
        assert min(ends["read"], ends["refused"]) > 20
