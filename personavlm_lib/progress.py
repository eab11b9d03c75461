"""Progress lines of long work."""

import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def progress_line(name: str, unit: str, done: int, of: int, rate: float) -> str:
    """`02_sft  step 120/450  1.4 steps/s  4 min left`; `rate` in units a second, 0 where none is known yet."""
    pace = (
        f"{rate:.1f} {unit}s/s"
        if rate >= 0.5
        else f"{1 / rate:.1f} s/{unit}"
        if rate
        else "starting"
    )
    left = (of - done) / rate if rate else 0
    told = (
        ""
        if not rate or done >= of
        else f"  {left / 60:.0f} min left"
        if left >= 90
        else f"  {left:.0f} s left"
    )
    return f"{name}  {unit} {done}/{of}  {pace}{told}"


def with_progress(items: Sequence[T], name: str, unit: str, every: float = 10.0) -> Iterator[T]:
    """The items; prints a line every `every` seconds, and after the last, on how many are done. `name`: the stage's."""
    start = shown = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - shown >= every or done == len(items):
            shown = now
            print(
                progress_line(name, unit, done, len(items), done / max(now - start, 1e-6)),
                flush=True,
            )
