"""Linear-chain conditional random field: the labels of a row are scored together, not one by one.

Shapes: B batch, T time, K labels.
"""

from typing import Any

import torch
from torch import nn
from transformers import initialization as init

from .shared_inputs import blank_padding


class LinearChainCRF(nn.Module):
    """p(y | x) = exp s(x, y) / Σ_y' exp s(x, y') (Lafferty 2001, section 3; Lample 2016, section 2.2),

        s(x, y) = start[y_1] + Σ_t P[t, y_t] + Σ_t transitions[y_t, y_t+1] + end[y_n],

    where the emissions P are the scores that a network gives each token by itself.

    The chain of a row is its n valid tokens in their order, wherever the padding is: a row in a batch gets what it
    gets alone. All sums are in fp32 at least. A row of padding only has one path, the empty one, of probability 1.

    Parameters:
        transitions (K, K): score of label j right after label i, at [i, j]
        start (K,), end (K,): score of the first and of the last label
    They start at 0, where the CRF is a softmax over each token by itself.
    """

    def __init__(self, num_labels: int):
        super().__init__()
        self.transitions = nn.Parameter(torch.empty(num_labels, num_labels))
        self.start = nn.Parameter(torch.empty(num_labels))
        self.end = nn.Parameter(torch.empty(num_labels))

    def init_weights(self, config: Any) -> None:
        for parameter in (self.transitions, self.start, self.end):
            init.zeros_(parameter)

    @torch.compiler.disable  # a loop over T, which the compiler would write out step by step
    def log_likelihood(self, emissions: torch.Tensor, labels: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Exact log p(labels | emissions) of each row, by the forward algorithm.

        A label of −100 is unknown: its token stays in the chain and the sum runs over all its labels (Tsuboi 2008),
        so that training and decoding see the same chain when only first sub-words are labelled.

        Args:
            emissions (B, T, K), labels (B, T) from 0 to K − 1 or −100, valid (B, T) bool. What emissions and labels
                hold where `valid` is False is not read.

        Returns:
            (B,) in fp32, or fp64 for fp64 emissions; 0 for rows without a label.

        Raises:
            ValueError: labels of another shape than (B, T).
        """
        if labels.shape != emissions.shape[:2]:
            raise ValueError(
                f"labels of shape {tuple(labels.shape)} do not fit the tokens: "
                f"pass one label a token, {tuple(emissions.shape[:2])}, −100 where there is none"
            )
        emissions, transitions, start, end = self._widen(emissions, valid)
        allowed = (labels[..., None] == _labels_like(emissions)) | (labels == -100)[..., None]
        # Two sums in one loop: over the paths that go through the given labels, and over all paths.
        both = torch.stack([torch.where(allowed, emissions, float("-inf")), emissions])
        alpha = torch.zeros_like(both[:, :, 0])  # (2, B, K): log of the summed paths that end in each label
        shifts = []
        for emission, now, begins in zip(both.unbind(2), _steps(valid), _steps(_first(valid)), strict=True):
            arriving = torch.logsumexp(alpha[..., None] + transitions, dim=-2)
            alpha = torch.where(now, torch.where(begins, start, arriving) + emission, alpha)
            # What would grow with T is kept apart, so that long rows lose no digits.
            shifts.append(alpha.detach().amax(-1))
            alpha = alpha - shifts[-1][..., None]
        given, free = torch.logsumexp(alpha + end, dim=-1)
        given_shift, free_shift = torch.stack(shifts, dim=-1)
        return given - free + (given_shift - free_shift).sum(-1)

    @torch.compiler.disable
    def viterbi(self, emissions: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """(B, T, K), (B, T) → the labels (B, T) of the path with the highest score; −100 where `valid` is False."""
        emissions, transitions, start, end = self._widen(emissions, valid)
        alphas, origins = _best_beginnings(emissions, transitions, start, valid)
        return _trace_back(alphas[-1] + end, origins, valid)

    @torch.compiler.disable
    def max_marginals(self, emissions: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """How much worse the best path through each label of each token is than the best path of all.

        Max-sum forward–backward (Viterbi's recursion from both ends). At each token the label of the Viterbi path has
        0 and the others less, so that argmax is `viterbi`; among paths that tie, the others get −eps of the dtype.

        Args:
            emissions (B, T, K), valid (B, T) bool.

        Returns:
            (B, T, K) in the emissions' dtype, 0 where `valid` is False.
        """
        dtype = emissions.dtype
        emissions, transitions, start, end = self._widen(emissions, valid)
        alphas, origins = _best_beginnings(emissions, transitions, start, valid)
        path = _trace_back(alphas[-1] + end, origins, valid)
        beta, scores = end.expand_as(alphas[0]), []  # (B, K): the best rest of a path after each label
        for alpha, emission, now in reversed(list(zip(alphas, emissions.unbind(1), _steps(valid), strict=True))):
            scores.append(alpha + beta)
            leaving = (transitions + (emission + beta)[:, None]).amax(-1)
            beta = torch.where(now, leaving - leaving.amax(-1, keepdim=True), beta)
        best_through = torch.stack(scores[::-1], dim=1)
        behind = best_through - best_through.amax(-1, keepdim=True)
        chosen = (path[..., None] == _labels_like(emissions)) | ~valid[..., None]
        return torch.where(chosen, 0.0, behind.clamp(max=-torch.finfo(dtype).eps)).to(dtype)

    def _widen(self, emissions: torch.Tensor, valid: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Emissions, zero under padding, and the parameters, in fp32 at least: half precision sums badly."""
        dtype = torch.promote_types(emissions.dtype, torch.float32)
        tensors = (blank_padding(emissions, valid), self.transitions, self.start, self.end)
        return tuple(tensor.to(dtype) for tensor in tensors)


def _best_beginnings(
    emissions: torch.Tensor, transitions: torch.Tensor, start: torch.Tensor, valid: torch.Tensor
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """For each step: the score (B, K) of the best path that ends in each label, less the largest of them, and the
    label (B, K) that this path has one token before."""
    alpha, alphas, origins = torch.zeros_like(emissions[:, 0]), [], []
    for emission, now, begins in zip(emissions.unbind(1), _steps(valid), _steps(_first(valid)), strict=True):
        arriving, origin = (alpha[..., None] + transitions).max(dim=-2)
        new = torch.where(begins, start, arriving) + emission
        alpha = torch.where(now, new - new.amax(-1, keepdim=True), alpha)
        alphas.append(alpha)
        origins.append(origin)
    return alphas, origins


def _trace_back(scores: torch.Tensor, origins: list[torch.Tensor], valid: torch.Tensor) -> torch.Tensor:
    """The labels (B, T) of the best path, from its last one, which `scores` (B, K) tell; −100 under padding."""
    label, path = scores.argmax(-1, keepdim=True), []
    for origin, now in reversed(list(zip(origins, _steps(valid), strict=True))):
        path.append(label)
        label = torch.where(now, origin.gather(-1, label), label)
    return torch.where(valid, torch.cat(path[::-1], dim=1), -100)


def _first(valid: torch.Tensor) -> torch.Tensor:
    """(B, T): True at each row's first valid token."""
    return valid & (valid.cumsum(1) == 1)


def _steps(mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """(B, T) → T tensors (B, 1)."""
    return mask[..., None].unbind(1)


def _labels_like(emissions: torch.Tensor) -> torch.Tensor:
    return torch.arange(emissions.shape[-1], device=emissions.device)
