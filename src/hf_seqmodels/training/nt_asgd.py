"""SGD that averages its iterates once validation stops getting better (Merity, Keskar & Socher 2017, algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch


class NTASGD(torch.optim.SGD):
    """SGD until the last evaluation is worse than the best of those more than `interval` evaluations ago; from then on
    the model that is evaluated and saved is the mean of all iterates since, while training goes on from the last one.

    The mean is (w_T + … + w_K) / (K − T + 1) of the paper: it begins with the weights of the evaluation that started
    it. (`torch.optim.ASGD` with λ = 0 and t0 = 0, which the authors' code uses, leaves out the first two of these, and
    takes the learning rate of the step before.)

    `eval()` puts the mean into the parameters and `train()` puts the iterate back, bit for bit; Trainer calls both, as
    for schedule-free optimizers (Defazio 2024). All that is remembered is in `state_dict()`: tensors, numbers, a list.

    Args:
        params: parameters, or groups of them.
        lr: learning rate γ.
        weight_decay: L2 penalty λ on every parameter: the gradient grows by λ·w.
        interval: n, at least 1.
    """

    def __init__(self, params: Iterable[Any], lr: float, weight_decay: float = 0.0, interval: int = 5):
        super().__init__(params, lr=lr, weight_decay=weight_decay)
        self.param_groups[0].update(interval=interval, losses=[], averaged=0, shows_mean=False)

    @property
    def averaged(self) -> int:
        """Iterates in the mean; 0 as long as it has not begun."""
        return self.param_groups[0]["averaged"]

    @torch.no_grad()
    def evaluated(self, loss: float) -> None:
        """Take note of the loss of an evaluation of the parameters as they are; the mean may begin here."""
        memory = self.param_groups[0]
        if self.averaged:
            return
        earlier = memory["losses"][: -memory["interval"]]
        memory["losses"].append(loss)
        if earlier and loss > min(earlier):
            memory["averaged"] = 1
            for parameter in self._parameters():
                self.state[parameter]["other"] = parameter.detach().clone()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """A step of SGD from the last iterate; the mean takes the new one in."""
        self.train()
        loss = super().step(closure)
        if self.averaged:
            self.param_groups[0]["averaged"] += 1
            for parameter in self._parameters():
                self.state[parameter]["other"].lerp_(parameter, 1 / self.averaged)
        return loss

    def eval(self) -> None:
        """Put the mean into the parameters, if there is one."""
        if self.averaged and not self.param_groups[0]["shows_mean"]:
            self._swap()

    def train(self) -> None:
        """Put the last iterate back into the parameters."""
        if self.param_groups[0]["shows_mean"]:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter in self._parameters():
            held = parameter.detach().clone()
            parameter.copy_(self.state[parameter]["other"])
            self.state[parameter]["other"].copy_(held)
        self.param_groups[0]["shows_mean"] = not self.param_groups[0]["shows_mean"]

    def _parameters(self) -> list[torch.Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]
