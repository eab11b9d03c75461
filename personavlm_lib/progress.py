"""Progress lines for long work."""

import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def progress_line(name: str, unit: str, done: int, total: int, rate: float) -> str:
    """Format a line such as `02_sft  step 120/450  1.4 steps/s  4 min left`.

    `rate` is in units per second; 0 means that it is not known yet.
    """
    counter = f"{name}  {unit} {done}/{total}"
    if rate == 0:
        return f"{counter}  starting"
    if rate >= 0.5:
        pace = f"{rate:.1f} {unit}s/s"
    else:
        pace = f"{1 / rate:.1f} s/{unit}"
    if done >= total:
        return f"{counter}  {pace}"
    seconds = (total - done) / rate
    if seconds >= 90:
        remaining = f"{seconds / 60:.0f} min"
    else:
        remaining = f"{seconds:.0f} s"
    return f"{counter}  {pace}  {remaining} left"


def with_progress(items: Sequence[T], name: str, unit: str, every: float = 10.0) -> Iterator[T]:
    """Yield the items, and print a progress line every `every` seconds and after the last item.

    `name` is the name of the stage, `unit` that of one item.
    """
    total = len(items)
    start = time.monotonic()
    last_print = start
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last_print >= every or done == total:
            last_print = now
            rate = done / max(now - start, 1e-6)
            line = progress_line(name, unit, done, total, rate)
            print(line, flush=True)
