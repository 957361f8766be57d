"""Gradients of many pictures, added up so that neither their order nor the number of workers changes a bit."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.nn import Parameter

from ..team import Team


class GradientSum:
    """The gradients for one step of the optimiser.

    The gradients of pictures that are computed together are float32. Their sum is float64, and on the CPU, since not
    every device has float64. It is rounded once, at the end: so workers that add up in another order get the same.

    Args:
        parameters: what the gradients are of.
    """

    def __init__(self, parameters: Iterable[Parameter]) -> None:
        self._parameters = list(parameters)
        self._sizes = [parameter.numel() for parameter in self._parameters]
        self._total = torch.zeros(sum(self._sizes), dtype=torch.float64)
        self._found = torch.zeros(len(self._sizes), dtype=torch.float64)
        """Of each parameter, how often it had a gradient."""

    def take(self) -> None:
        """Add the gradients that the parameters have now, and take these from them."""
        for number, (parameter, own) in enumerate(zip(self._parameters, self._total.split(self._sizes), strict=True)):
            if parameter.grad is not None:
                own += parameter.grad.flatten().cpu()
                self._found[number] += 1
                parameter.grad = None

    def give(self, team: Team) -> None:
        """Make the sum over all workers the parameters' gradients; one that had none anywhere has none."""
        everyone = team.total(torch.cat([self._total, self._found]))
        found = everyone[len(self._total) :]
        for number, (parameter, own) in enumerate(
            zip(self._parameters, everyone[: len(self._total)].split(self._sizes), strict=True)
        ):
            parameter.grad = own.view_as(parameter).to(parameter) if found[number] else None
