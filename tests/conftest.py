"""The device that the tests of the models run on, the largest errors, and the table of what was tested."""

import os
import signal

# On some CPUs MKL's bits depend on where a tensor begins in memory; loaded weights begin elsewhere than new ones.
os.environ.setdefault("MKL_CBWR", "AUTO")

# A shell that starts the tests in the background makes them, and their children, deaf to Ctrl-C, which some press.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
import torch
from transformers.utils import logging

from coverage_table import Counts, mark_items
from model_table import largest_errors

counts = Counts()
DEVICE = os.environ.get("HF_SEQMODELS_TEST_DEVICE", "cpu")


@pytest.fixture(autouse=True)
def _talk_as_before():
    """Commands make transformers quiet, and a quiet transformers shows no bars in the next test."""
    before = logging.get_verbosity()
    yield
    logging.set_verbosity(before)


@pytest.fixture(autouse=True)
def _on_device():
    """Each test starts from the same seed; what it creates lies on the device, where fp32 means fp32 (no TF32)."""
    torch.manual_seed(0)
    if DEVICE == "cpu":
        yield
        return
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.set_default_device(DEVICE)
    yield
    torch.set_default_device(None)


def pytest_collection_modifyitems(items):
    mark_items(items)


def pytest_runtest_logreport(report):
    counts.add(report)


def pytest_sessionfinish(session, exitstatus):
    """`make test-table` asks for the table; in a worker of xdist there is nothing to write."""
    if os.environ.get("HF_SEQMODELS_TEST_TABLE") and not hasattr(session.config, "workerinput"):
        counts.write()


def pytest_terminal_summary(terminalreporter):
    if largest_errors:
        terminalreporter.section("largest errors (relative to max(1, |expected|))")
        for row, error in sorted(largest_errors.items()):
            terminalreporter.write_line(f"{row:24} {error:.2e}")
