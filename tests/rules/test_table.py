"""Every architecture has every head, or says why not; the README's table is what the tests counted."""

from __future__ import annotations

import json

import pytest

from coverage_table import RESULTS, ROOT, explained, markdown
from hf_seqmodels.models import ARCHITECTURES, HEADS


@pytest.fixture(scope="module")
def counts() -> dict:
    return json.loads(RESULTS.read_text(encoding="utf-8"))


def test_no_unexplained_hole(counts):
    cells = explained(ARCHITECTURES, list(HEADS), counts)
    assert len(cells) == len(ARCHITECTURES) * len(HEADS) >= 90


def test_a_hole_is_seen(counts):
    """The check can fail: a head without tests, one that is neither there nor explained, one that is both."""
    lstm = ARCHITECTURES["seq_lstm"]
    table = {"seq_lstm": lstm}
    with pytest.raises(AssertionError, match="ctc exists and no test speaks of it"):
        explained(table, ["ctc"], {"seq_lstm": {}})
    with pytest.raises(AssertionError, match="either exist or be explained"):
        explained(table, ["object-detection"], counts)
    with pytest.raises(AssertionError, match="either exist or be explained"):
        explained({"seq_lstm": type(lstm)(lstm.config, lstm.models, {}, {"ctc": "no"})}, ["ctc"], counts)


def test_readme_has_the_table_that_the_tests_wrote(counts):
    assert markdown(ARCHITECTURES, list(HEADS), counts) in (ROOT / "README.md").read_text(encoding="utf-8")
