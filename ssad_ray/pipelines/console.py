"""How far work has come, shown on a terminal or in a log."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ssad_ray.pipelines.run import Announce

_LOG_INTERVAL_S = 10.0


@contextmanager
def progress() -> Iterator[Announce]:
    """Show one bar per piece of work on a terminal, and elsewhere, as in a log, a line every ten seconds."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:40}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bars:

        def announce(title: str) -> Callable[..., None]:
            task = bars.add_task(title, total=None)
            started = next_line = time.monotonic()
            printed = -1

            def advance(done: int, total: int, *_: float) -> None:
                nonlocal next_line, printed
                bars.update(task, completed=done, total=total)
                now = time.monotonic()
                if not console.is_terminal and (now >= next_line or printed < done == total):
                    console.print(f"{title}: {done} of {total}, {now - started:.0f} s", highlight=False)
                    next_line, printed = now + _LOG_INTERVAL_S, done

            return advance

        yield announce
