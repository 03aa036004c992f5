"""What the demo says while it runs, on stderr: sentences, and under them, on a terminal, a line of figures that moves."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console

from workers.demo.watch import Counts


class Progress:
    """Used as a context manager. Off a terminal the sentences come as plain lines, and the figures are left out."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._status = self._console.status("") if self._console.is_terminal else None

    def say(self, sentence: str) -> None:
        """Show a sentence that stays."""
        self._console.print(sentence, markup=False, soft_wrap=not self._console.is_terminal)

    def show(self, counts: Counts) -> None:
        """Show how things stand, in place of what stood there."""
        if self._status is not None:
            self._status.update(
                f"{counts.committed} orders · {counts.delivered} delivered · {counts.under_way} under way · "
                f"{counts.retrying} to retry · {counts.dead_lettered} dead-lettered"
            )

    def __enter__(self) -> Progress:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status is not None:
            self._status.stop()
