"""What a training needs to know, and what its libraries' failures mean to a person. Imports none of the libraries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from fastgen.errors import DiskError, FastgenError, InputError
from fastgen.progress import Reporter
from fastgen.tuning.base import BaseModel
from fastgen.tuning.options import MachineOptions, TrainingOptions
from fastgen.tuning.place import TuningFolder

_OUT_OF_MEMORY: Final = ("out of memory", "can't allocate memory", "not enough memory")
_CANNOT_WRITE: Final = ("No space left", "failed writing file", "unexpected pos", "Disk quota")


@dataclass(frozen=True, slots=True)
class Job:
    """All that a training needs to know; ``stopping`` says whether somebody asked it to stop."""

    base: BaseModel
    place: TuningFolder
    is_chat: bool
    has_eval: bool
    options: TrainingOptions
    machine: MachineOptions
    reporter: Reporter
    stopping: Callable[[], bool] = field(default=lambda: False)


@contextmanager
def in_one_line(job: Job) -> Iterator[None]:
    """Too little memory and full disks, which the libraries tell in as many ways as there are, as errors of ours.

    :raises InputError: the memory does not hold the training. :raises DiskError: the folder cannot be written.
    """
    try:
        yield
    except MemoryError:
        raise _too_little_memory(job) from None
    except Exception as error:
        text = str(error)
        if isinstance(error, FastgenError):
            raise
        if any(words in text for words in _OUT_OF_MEMORY):
            raise _too_little_memory(job) from None
        if isinstance(error, OSError) or any(words in text for words in _CANNOT_WRITE):
            reason = " ".join(text.split())[:160]
            raise DiskError(f"--output {job.place.path}: cannot be written ({reason}); make room and go on") from None
        raise


def _too_little_memory(job: Job) -> InputError:
    micro = job.machine.micro_batch(job.options)
    smaller = f"--micro-batch-size below {micro} or " if micro > 1 else ""
    other = "" if job.options.lora else ", or tune adapters only with --lora"
    return InputError(
        f"--base-model {job.base.name}: the memory does not hold the training; take {smaller}a --max-length below "
        f"{job.options.max_length}{other}; --micro-batch-size may change when the tuning goes on"
    )
