"""A run's folder belongs to one experiment at a time."""

import os
from pathlib import Path
from typing import ClassVar
from weakref import WeakValueDictionary

from hyperfed.core import UserError
from hyperfed.core.files import lock


class InUse(UserError):
    """The folder is another process's: nothing may be written there."""


class Claim:
    """Other processes are refused until :meth:`release` or this process's end; in this process, the last to open a folder has it."""

    _mine: ClassVar["WeakValueDictionary[Path, Claim]"] = WeakValueDictionary()
    _descriptor: int | None = None

    def __init__(self, folder: Path) -> None:
        self.folder, path = folder, (folder / ".run.lock").resolve()
        if before := self._mine.get(path):
            before.release()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._descriptor = lock(path)
        except OSError as problem:
            raise UserError(f"run.dir {str(folder)!r} cannot be written: {problem.strerror}.") from problem
        if self._descriptor is None:
            raise InUse(f"run.dir {str(folder)!r} is in use by another process: wait until it has ended, or choose another run.dir.")
        self._mine[path] = self

    def check(self) -> None:
        """Raise UserError where the folder was given back, or opened anew, since."""
        if self._descriptor is None:
            raise UserError(
                f"run.dir {str(self.folder)!r} is no longer this experiment's, which has ended or was opened anew: make another."
            )

    def release(self) -> None:
        """Give the folder back."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __del__(self) -> None:
        self.release()
