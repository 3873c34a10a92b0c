"""The maths of both stages has not moved."""

import json

import pytest
from golden import FILE, losses


def test_losses_of_eight_steps_per_stage() -> None:
    """Renew with `python tests/golden.py --write` after a change that is meant to move them."""
    expected, found = json.loads(FILE.read_text()), losses()
    assert found.keys() == expected.keys()
    for stage, steps in expected.items():
        for i, (ours, theirs) in enumerate(zip(found[stage], steps, strict=True)):
            assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6), f"{stage}, step {i + 1}"
