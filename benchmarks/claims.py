"""A benchmark of several claims: a function and a name each, and rows that are kept as they come.

A claim that fails is shown with its traceback and does not stop the next; a run that is killed
keeps what was measured before.
"""

from __future__ import annotations

import gc
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from typing import Any

import torch
from measurements import SHARED, arguments, folder_of, show, update

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CARD = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
Rows = Iterable[dict[str, Any]]


class Claims:
    """The claims of one script.

    Args:
        results: NAME of the file NAME.json that holds the rows.

    Attributes:
        tiny: whether this is a dry run at toy sizes.
        shared: the folder with data and base.
    """

    def __init__(self, results: str) -> None:
        self.results = results
        self.functions: dict[str, Callable[[], Rows]] = {}
        self.tiny = False
        self.shared = SHARED

    def __call__(self, function: Callable[[], Rows]) -> Callable[[], Rows]:
        """Register a function that measures one row or a few."""
        self.functions[function.__name__] = function
        return function

    def shape(self, name: str) -> str:
        """The shape, or the toy one in a dry run."""
        return "tiny" if self.tiny else name

    def main(self, description: str | None) -> None:
        """Measure the claims asked for, in their order; exit code 1 where one failed."""
        parser = arguments(description)
        parser.add_argument("--rows", default=",".join(self.functions), help="names, with commas")
        asked = parser.parse_args()
        unknown = set(asked.rows.split(",")) - set(self.functions)
        if unknown:
            parser.error(f"no such rows: {', '.join(sorted(unknown))}")
        self.tiny, self.shared = asked.tiny, asked.shared
        failed = []
        for name in asked.rows.split(","):
            print(f"{name}:", flush=True)
            sys.argv[1:] = ["--rows", name]  # what a row keeps of the command
            started = time.perf_counter()
            try:
                rows: list[dict[str, Any]] = []
                for one in self.functions[name]():
                    rows.append(one)
                    update(self.results, rows, folder_of(asked))
                    show([one])
            except Exception:
                traceback.print_exc()
                failed.append(name)
            clear()
            print(f"  {name}: {time.perf_counter() - started:.0f} s", flush=True)
        if failed:
            sys.exit(f"failed: {', '.join(failed)}")


def clear() -> None:
    """Forget what is no longer used, and start counting peaks anew."""
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def wait() -> None:
    """Until the device has done all it was given."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
