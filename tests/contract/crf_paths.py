"""The linear-chain CRF written out: every path with its score, term by term."""

from __future__ import annotations

import itertools

import torch

from hf_seqmodels.models.shared_crf import LinearChainCRF

K = 3  # labels


def draw_labels(batch: int, length: int, unknown: float = 0.3, seed: int = 3) -> torch.Tensor:
    """Labels (B, T), a part of them −100."""
    torch.manual_seed(seed)
    return torch.randint(K, (batch, length)).masked_fill(torch.rand(batch, length) < unknown, -100)


def all_paths(crf: LinearChainCRF, emissions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Emissions (T, K) of one row of tokens → its K^T paths (paths, T), and their scores, term by term."""
    length, num_labels = emissions.shape
    paths, scores = list(itertools.product(range(num_labels), repeat=length)), []
    for path in paths:
        score = crf.start[path[0]] + crf.end[path[-1]]
        for t, label in enumerate(path):
            score = score + emissions[t, label]
        for left, right in itertools.pairwise(path):
            score = score + crf.transitions[left, right]
        scores.append(score)
    return torch.tensor(paths), torch.stack(scores)


def slow_log_likelihood(crf: LinearChainCRF, emissions: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Of one row of tokens: the share of the paths that have the known labels."""
    paths, scores = all_paths(crf, emissions)
    agree = ((paths == labels) | (labels == -100)).all(-1)
    return scores[agree].logsumexp(0) - scores.logsumexp(0)
