"""Posteriors against azula, whose authors wrote the paper of moment matching."""

import pytest
import torch
from azula.denoise import Denoiser as AzulaDenoiser
from azula.denoise import DiracPosterior
from azula.guidance import DPSSampler, MMPSDenoiser, PGDMSampler
from azula.linalg.covariance import IsotropicCovariance

import steadyflow as sf
from steadyflow.corrections import Posterior
from test_posterior import MIXTURE, NOISE, PATHS, A, Y, state


class Wrapped(AzulaDenoiser):
    """One of our models as azula takes them; its time is ours."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def schedule(self, t):
        level = self.model.schedule.at(float(t))
        return torch.tensor(level.alpha, dtype=torch.float64), torch.tensor(level.sigma, dtype=torch.float64)

    def forward(self, x_t, t, **kwargs):
        return DiracPosterior(mean=self.model(x_t, float(t)).x0)


@pytest.mark.parametrize("schedule", PATHS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("iterations", [1, 2])
def test_moment_matching_is_azula_s(schedule, iterations):
    t, _, x = state(schedule, 0.5)
    model, noise = MIXTURE.denoiser(schedule), IsotropicCovariance(torch.tensor(NOISE**2, dtype=torch.float64))
    theirs = MMPSDenoiser(Wrapped(model), Y, lambda v: v @ A.T, noise, iterations=iterations)
    ours = Posterior(A, Y, NOISE, iterations=iterations).of(model)
    torch.testing.assert_close(ours(x, t).x0, theirs(x, torch.tensor(t)).mean, rtol=1e-6, atol=1e-6)


def test_dps_and_pseudo_inverse_guidance_pull_as_azula_s_steps_do():
    """Their steps move the state by a multiple of J^T A^T w; the directions are compared, sample by sample."""
    schedule = sf.VPLinear()
    t, _, x = state(schedule, 0.5, 1)
    model, y = MIXTURE.denoiser(schedule), Y[:1]
    wrapped, later = Wrapped(model), torch.tensor(t - 0.1, dtype=torch.float64)
    inverse = torch.linalg.pinv(A)
    now = torch.tensor(t, dtype=torch.float64)
    for method, sampler, options in (
        ("dps", DPSSampler(wrapped, y, lambda v: v @ A.T, zeta=1.0), {}),
        ("pigdm", PGDMSampler(wrapped, y, lambda v: v @ A.T, lambda v: v @ inverse.T), {"noise": 1e-6}),
    ):
        sampler.silent = True
        torch.manual_seed(0)
        theirs = sampler.step(x, now, later)
        torch.manual_seed(0)
        plain = super(type(sampler), sampler).step(x, now, later)
        pull = theirs - plain
        ours = Posterior(A, y, options.get("noise", NOISE), method).of(model)(x, t).x0 - model(x, t).x0
        cosine = torch.nn.functional.cosine_similarity(pull, ours)
        assert cosine.item() == pytest.approx(1.0, abs=1e-6), method
