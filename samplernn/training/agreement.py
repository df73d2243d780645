"""What the processes of a run agree on in every step, in one message that none of them waits for."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Agreed(NamedTuple):
    """What holds for all processes alike."""

    must_stop: bool = False
    """Some process was asked to stop."""
    must_save: bool = False
    """The first process finds that a checkpoint is due."""
    seconds: float = 0.0
    """Training time by the first process's clock: one clock decides, or they would end at different steps
    and with different learning rates."""


class Agreement:
    """One sum over all processes per step carries the number of real samples and everything in `Agreed`.

    The number is used at once and on the device, for the loss. The rest has to be read by the host,
    which would make it wait for the device in every step; so among several processes it counts one
    step later, when it has long arrived. A process by itself agrees at once.

    Args:
        seconds: training time so far, which holds until the first message.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self.agreed = Agreed(seconds=seconds)
        self._arriving: tuple[Tensor, torch.cuda.Event | None] | None = None

    def exchange(
        self, real: Tensor, wish: Agreed, rank: int, sum_over_processes: Callable[[Tensor], Tensor] | None
    ) -> Tensor:
        """Send and receive this step's message.

        Args:
            real: number of real samples of this process, int64 ``[]``.
            wish: what this process would like to be agreed.
            rank: of this process.
            sum_over_processes: adds up an int64 tensor; None: there is one process.

        Returns:
            Real samples of all processes, int64 ``[]``.
        """
        if sum_over_processes is None:
            self.agreed = wish
            return real
        mine = [int(wish.must_stop), 0, 0]
        if rank == 0:
            mine[1:] = int(wish.must_save), round(1000 * wish.seconds)
        totals = sum_over_processes(torch.cat([real[None], torch.tensor(mine).to(real.device)]))
        if self._arriving is not None:
            values, arrival = self._arriving
            if arrival is not None:
                arrival.synchronize()
            _, stop, save, milliseconds = values.tolist()
            self.agreed = Agreed(stop > 0, save > 0, milliseconds / 1000)
        self._arriving = _to_host(totals)
        return totals[0]


def _to_host(totals: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Begin to copy a message to the host; from the event on, if there is one, it is there."""
    if not totals.is_cuda:
        return totals.clone(), None
    values = torch.empty(totals.shape, dtype=totals.dtype, pin_memory=True)
    values.copy_(totals, non_blocking=True)
    arrival = torch.cuda.Event()
    arrival.record()
    return values, arrival
