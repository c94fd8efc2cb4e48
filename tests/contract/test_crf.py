"""The linear-chain CRF against all K^T paths written out: likelihood, best path, padding, precision."""

from __future__ import annotations

import itertools

import pytest
import torch
from crf_paths import K, all_paths, draw_labels, slow_log_likelihood

from hf_seqmodels.models.shared_crf import LinearChainCRF
from model_table import assert_close, assert_same_gradients, make_mask, named_gradients


def make_crf(dtype: torch.dtype = torch.float64, num_labels: int = K, seed: int = 0) -> LinearChainCRF:
    torch.manual_seed(seed)
    crf = LinearChainCRF(num_labels).to(dtype)
    for parameter in crf.parameters():
        torch.nn.init.normal_(parameter)
    return crf


@pytest.mark.parametrize("unknown", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("num_labels", [2, 3])
def test_log_likelihood_is_that_of_all_paths(num_labels, unknown):
    """Values and gradients, with padding of every kind and NaN under it."""
    crf, mask = make_crf(num_labels=num_labels), make_mask("mixed")[:, :6].bool()
    mask[-1, 2] = True  # the row of a single token, which stands behind the cut
    emissions = torch.randn(*mask.shape, num_labels, dtype=torch.float64, requires_grad=True)
    labels = draw_labels(*mask.shape, unknown)
    labels = torch.where(labels < num_labels, labels, 0)
    fast = crf.log_likelihood(torch.where(mask[..., None], emissions, float("nan")), labels, mask)
    (fast * torch.arange(1, 6)).sum().backward()
    gradients = named_gradients(crf) | {"emissions": emissions.grad}
    emissions.grad = None
    slow = [slow_log_likelihood(crf, emissions[i][mask[i]], labels[i][mask[i]]) for i in range(len(mask))]
    (torch.stack(slow) * torch.arange(1, 6)).sum().backward()
    assert_close(fast, torch.stack(slow), 1e-12, "CRF log-likelihood")
    assert_same_gradients(gradients, named_gradients(crf) | {"emissions": emissions.grad}, 1e-12, "CRF log-likelihood")
    assert not gradients["emissions"][~mask].any()
    assert (fast == 0).all() if unknown == 1.0 else (fast < 0).all()


def test_probabilities_of_all_labellings_add_up_to_one():
    crf, emissions = make_crf(), torch.randn(1, 4, K, dtype=torch.float64)
    labels = torch.tensor(list(itertools.product(range(K), repeat=4)))
    valid = torch.ones_like(labels, dtype=torch.bool)
    total = crf.log_likelihood(emissions.expand(len(labels), -1, -1), labels, valid).exp().sum()
    assert_close(total, torch.ones_like(total), 1e-12, "CRF log-likelihood")


@pytest.mark.parametrize("num_labels", [1, 2, 3])
def test_best_path_is_that_of_all_paths(num_labels):
    """Viterbi, and the score of the best path through each label of each token; padding of every kind."""
    crf, mask = make_crf(num_labels=num_labels), make_mask("mixed")[:, :6].bool()
    mask[-1, 2] = True
    emissions = torch.randn(*mask.shape, num_labels, dtype=torch.float64)
    poisoned = torch.where(mask[..., None], emissions, float("nan"))
    labels, through = crf.viterbi(poisoned, mask), crf.max_marginals(poisoned, mask)
    assert (labels[~mask] == -100).all()
    assert not through[~mask].any()
    for i, tokens in enumerate(mask):
        paths, scores = all_paths(crf, emissions[i][tokens])
        assert labels[i][tokens].tolist() == paths[scores.argmax()].tolist()
        best = [[scores[paths[:, t] == k].max().item() for k in range(num_labels)] for t in range(int(tokens.sum()))]
        expected = torch.tensor(best, dtype=torch.float64) - scores.max()
        assert_close(through[i][tokens], expected, 1e-12, "CRF max-marginals")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_argmax_of_the_max_marginals_is_the_best_path(dtype):
    """Also where paths tie, of which a label by label argmax could mix two, and where half precision rounds."""
    for seed in range(10):
        crf, valid = make_crf(torch.float32, 4, seed), torch.rand(6, 60) < 0.8
        emissions = torch.randn(6, 60, 4)
        if seed % 2:  # scores of few values: ties everywhere
            emissions = emissions.round()
            for parameter in crf.parameters():
                parameter.data.round_()
        emissions, crf = emissions.to(dtype), crf.to(dtype)
        through = crf.max_marginals(emissions, valid)
        assert through.dtype == dtype
        assert torch.equal(through.argmax(-1)[valid], crf.viterbi(emissions, valid)[valid])
        assert (through.max(-1).values == 0).all()
        assert (through.sort(-1).values[valid][:, -2] < 0).all(), "one best label a token"


def test_without_transitions_it_is_a_softmax_over_each_token():
    """As it starts: the likelihood factorises, and the max-marginals are the emissions less their maximum."""
    crf, emissions, labels = LinearChainCRF(K).double(), torch.randn(2, 7, K).double(), draw_labels(2, 7, 0.0)
    crf.init_weights(None)
    valid = torch.ones_like(labels, dtype=torch.bool)
    expected = emissions.log_softmax(-1).gather(-1, labels[..., None]).sum((1, 2))
    assert_close(crf.log_likelihood(emissions, labels, valid), expected, 1e-12, "CRF log-likelihood")
    expected = emissions - emissions.amax(-1, keepdim=True)
    assert_close(crf.max_marginals(emissions, valid), expected, 1e-12, "CRF max-marginals")


def test_transitions_are_read_from_left_to_right():
    """[i, j] scores j after i: a chain that may only count upwards does."""
    crf = LinearChainCRF(4)
    crf.init_weights(None)
    crf.transitions.data.fill_(-50.0)
    for i in range(3):
        crf.transitions.data[i, i + 1] = 50.0
    valid = torch.ones(1, 4, dtype=torch.bool)
    assert crf.viterbi(torch.zeros(1, 4, 4), valid).tolist() == [[0, 1, 2, 3]]


def test_gradcheck():
    crf, valid = make_crf(), torch.tensor([[1, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0]]).bool()
    labels, names = draw_labels(3, 4), [name for name, _ in crf.named_parameters()]
    emissions = torch.randn(3, 4, K, dtype=torch.float64, requires_grad=True)

    class Both(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.crf = crf

        def forward(self, emissions):
            return self.crf.log_likelihood(emissions, labels, valid), self.crf.max_marginals(emissions, valid)

    def compute(emissions, *parameters):
        tensors = {f"crf.{name}": parameter for name, parameter in zip(names, parameters, strict=True)}
        return torch.func.functional_call(Both(), tensors, (emissions,))

    assert torch.autograd.gradcheck(compute, (emissions, *crf.parameters()))


def test_row_of_padding_only():
    """Likelihood 0, no label, and no gradient, with NaN under the padding too."""
    crf, emissions = make_crf(), torch.full((2, 3, K), float("nan"), dtype=torch.float64, requires_grad=True)
    valid = torch.zeros(2, 3, dtype=torch.bool)
    likelihood = crf.log_likelihood(emissions, draw_labels(2, 3, 0.0), valid)
    through = crf.max_marginals(emissions, valid)
    assert not likelihood.any() and not through.any()
    assert (crf.viterbi(emissions, valid) == -100).all()
    (likelihood.sum() + through.sum()).backward()
    for name, gradient in (named_gradients(crf) | {"emissions": emissions.grad}).items():
        assert not gradient.any(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_long_rows_keep_their_digits(dtype):
    """T = 2000 against fp64: the sums are kept small and in fp32, whatever the emissions are."""
    crf, length = make_crf(torch.float32, 9).to(dtype), 2000
    emissions = (3 * torch.randn(2, length, 9)).to(dtype).requires_grad_()
    labels, valid = torch.randint(9, (2, length)), torch.ones(2, length, dtype=torch.bool)
    labels[1, ::3] = -100
    fast = crf.log_likelihood(emissions, labels, valid)
    fast.sum().backward()
    exact, precise = make_crf(torch.float32, 9).to(dtype).double(), emissions.detach().double().requires_grad_()
    expected = exact.log_likelihood(precise, labels, valid)
    expected.sum().backward()
    assert fast.dtype == torch.float32
    assert_close(fast, expected, 1e-6, "CRF long rows")
    gradients = named_gradients(crf) | {"emissions": emissions.grad}
    row, tolerance = f"CRF long rows {str(dtype)[6:]}", 3e-5 if dtype == torch.float32 else 2e-2  # of 2000 roundings
    assert_same_gradients(gradients, named_gradients(exact) | {"emissions": precise.grad}, tolerance, row)
    assert torch.equal(crf.viterbi(emissions, valid), exact.viterbi(precise, valid))


def test_labels_of_another_shape():
    crf, valid = make_crf(), torch.ones(2, 4, dtype=torch.bool)
    for shape in ((2, 3), (2, 1), (8,)):
        with pytest.raises(ValueError, match=r"do not fit the tokens: pass one label a token, \(2, 4\)"):
            crf.log_likelihood(torch.randn(2, 4, K), torch.zeros(shape, dtype=torch.long), valid)
