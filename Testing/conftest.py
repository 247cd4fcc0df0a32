"""Fixtures of all tests."""

import pytest


@pytest.fixture
def application():
    """The test host, started and empty; printed errors fail the test."""
    from host import application
    application.start()
    application.clear()
    yield application
    application.process()
    errors = list(application.slotErrors)
    application.clear()
    assert not errors, "Errors were printed during the test:\n" + "\n".join(errors)
