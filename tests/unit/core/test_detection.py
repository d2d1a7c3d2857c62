"""When the oldest change that is not yet sent was detected."""

from __future__ import annotations

from devwatch.core.detection import Detection


def test_a_change_is_as_old_as_its_first_uevent() -> None:
    """Until it is sent; the next one has a time of its own."""
    detection = Detection()
    for now in (1, 2):
        detection.detect(now)
        detection.update(None, now, ready=True)
    assert detection.take() == 1
    detection.detect(3)
    assert detection.take() == 3
    assert detection.take() is None


def test_a_uevent_that_changes_nothing_is_forgotten() -> None:
    """A change that comes later was not detected by it."""
    detection = Detection()
    detection.detect(1)
    detection.update(None, 1, ready=False)
    assert detection.take() is None


def test_a_change_by_the_end_of_a_grace_is_as_old_as_that_end() -> None:
    """However late the cycle is that finds it."""
    detection = Detection()
    detection.update(10, 1, ready=False)
    detection.update(10, 9, ready=True)
    assert detection.take() is None
    detection.update(None, 12, ready=True)
    assert detection.take() == 10


def test_a_change_that_failed_to_be_sent_is_older_than_any_uevent_since() -> None:
    """A failed read had none, and takes the time from no other change."""
    detection = Detection()
    detection.detect(1)
    sent = detection.take()
    detection.detect(2)
    detection.restore(sent)
    detection.restore(None)
    assert detection.take() == 1
