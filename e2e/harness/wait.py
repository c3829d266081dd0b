"""Waiting for a condition with a deadline: tests never sleep for a fixed time."""
import time


def until(what, condition, seconds=30, every=0.1):
    """Returns the first true result of `condition`; an AssertionError of its own counts as not yet."""
    deadline, last = time.monotonic() + seconds, None
    while True:
        try:
            if last := condition():
                return last
        except (AssertionError, LookupError, OSError, ValueError) as e:
            last = e
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}; last seen: {last!r}")
        time.sleep(every)


def hold(what, condition, seconds=2, every=0.1):
    """Fails as soon as `condition` is false within the given time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not condition():
            raise AssertionError(f"did not last {seconds} s: {what}")
        time.sleep(every)
