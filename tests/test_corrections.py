"""Restart and Escape: marginals kept, trapped samples found and freed, the same for any batch."""

import math

import pytest
import scipy.stats
import torch

import steadyflow as sf
from steadyflow.jacobians.spectra import largest_singular_value
from steadyflow_lab.theory import interpolation as theory
from steadyflow_lab.theory.saddles import saddle_rate

SCHEDULE = sf.Tabulated.linear()
MIXTURE = sf.GaussianMixture.grid(5, spacing=2.0 / 8**0.5, std=0.02 / 8**0.5)
MODEL = MIXTURE.denoiser(SCHEDULE)


def drawn(n=1500, steps=10, correction=None, **options):
    corrections = [] if correction is None else [correction]
    run = sf.sample(
        MODEL,
        n=n,
        steps=steps,
        t_max=800.0,
        corrections=corrections,
        dtype=torch.float64,
        solver="ddim",
        end="path",
        **options,
    )
    return MODEL(run.x, 0.0).x0


@pytest.mark.parametrize("schedule", [sf.VPLinear(), sf.VE(), sf.RectifiedFlow(t_max=0.999)])
def test_renoising_keeps_the_marginals(schedule):
    """Exact samples at a late time, restarted with many steps, are exact samples still (KS test, p > 1e-3)."""
    mixture = sf.GaussianMixture(torch.tensor([[-1.0], [0.5]], dtype=torch.float64), 0.4, torch.tensor([0.3, 0.7]))
    model = mixture.denoiser(schedule)
    grid = sf.grids.make("quadratic", schedule, 60)
    late = mixture.marginal(schedule, grid.times[39]).sample(4000, seed=3)
    part = sf.Grid(grid.times[39:])
    whole = sf.sample(model, x=late, grid=part, solver="rk4")
    again = sf.sample(model, x=late, grid=part, solver="rk4", corrections=[sf.corrections.Restart(3, 15, 2, "rk4")])
    end = mixture.marginal(schedule, part.times[-1])

    def cdf(v):
        parts = zip(end.weights.tolist(), end.means[:, 0].tolist(), strict=True)
        return sum(w * scipy.stats.norm.cdf(v, m, float(end.std)) for w, m in parts)

    for run in (whole, again):
        assert scipy.stats.kstest(run.x[:, 0].numpy(), cdf).pvalue > 1e-3
    assert not torch.equal(whole.x, again.x)
    assert (whole.x - again.x).abs().median() > 0.01  # it did decide anew


def test_the_stretch_is_below_one_at_a_mode_and_the_saddles_between():
    t = 6.0
    s2 = theory.variance(MIXTURE, SCHEDULE, t)
    alpha = SCHEDULE.alpha(t)
    i, j = MIXTURE.means[0], MIXTURE.means[1]
    length = float((j - i).norm())
    x = alpha * torch.stack([i, 0.5 * (i + j)])
    found = largest_singular_value(MODEL, x, t, products=6)
    assert found[0] < 1.0
    assert found[1].item() == pytest.approx(saddle_rate(length**2 / s2) + 1.0, rel=0.05)


def test_trapped_samples_are_freed_and_the_others_left_alone():
    plain = drawn()
    escape = sf.corrections.Escape(remaining=2, back=6)
    freed = drawn(correction=escape)
    before, after = theory.classify(plain, MIXTURE), theory.classify(freed, MIXTURE)
    trapped = before.kind == theory.INTERPOLATED
    assert trapped.sum() >= 3
    assert (after.kind == theory.VALID).all()
    moved = (plain - freed).norm(dim=1) > 1e-9
    assert moved[trapped].all()
    assert moved.sum() == escape.record.flagged
    assert escape.record.samples == 1500
    looks = 5.0 * (1500 + escape.record.flagged)
    assert looks <= escape.record.evaluations <= looks + 3 * 11.0 * escape.record.flagged


def test_corrections_do_not_depend_on_the_batch():
    for make in (lambda: sf.corrections.Escape(2, 6), lambda: sf.corrections.Restart(2, 6)):
        whole, parts = drawn(60, correction=make()), drawn(60, correction=make(), batch_size=17)
        assert torch.allclose(whole, parts, atol=1e-9)
        assert torch.allclose(drawn(1, correction=make(), index=7), whole[7:8], atol=1e-9)


def test_conditions_follow_the_picked_samples():
    """Under a class of its own each, a restarted sample still belongs to its class."""
    mixture = sf.GaussianMixture(MIXTURE.means, MIXTURE.std, labels=torch.arange(25))
    model = mixture.denoiser(SCHEDULE)
    labels = torch.arange(50) % 25
    for condition in (labels, labels.tolist()):
        run = sf.sample(
            model.with_condition(condition),
            n=50,
            steps=20,
            corrections=[sf.corrections.Restart(4, 10)],
            dtype=torch.float64,
        )
        assert (torch.cdist(run.x / SCHEDULE.alpha(0.0), mixture.means).argmin(1) == labels).all()


def test_bad_input_is_named():
    with pytest.raises(sf.InputError, match="back"):
        sf.corrections.Restart(back=0)
    with pytest.raises(sf.InputError, match="threshold"):
        sf.corrections.Escape(threshold=0.0)
    with pytest.raises(sf.InputError, match="smaller back"):
        drawn(2, correction=sf.corrections.Restart(2, 9))
    with pytest.raises(sf.InputError, match="only valid in sampling"):
        sf.invert(MODEL, MIXTURE.sample(2), steps=8, corrections=[sf.corrections.Restart(4, 2)])
    with pytest.raises(sf.InputError, match="noise source"):
        sf.integrate(
            MODEL, MIXTURE.sample(2), sf.grids.make("quadratic", SCHEDULE, 9), sf.DDIM(),
            corrections=[sf.corrections.Restart(4, 2)],
        )  # fmt: skip
    assert math.isfinite(drawn(2, correction=sf.corrections.Restart(2, 8)).sum())


def test_a_hybrid_is_its_parts_in_turn():
    """Deterministic, then noisy, then deterministic: the same as three runs over the parts of the grid."""
    hybrid = sf.solvers.get("hybrid", noisy=3, after=2)
    grid = sf.grids.make("quadratic", SCHEDULE, 12)
    x = MIXTURE.marginal(SCHEDULE, grid.times[0]).sample(20)
    whole = sf.sample(MODEL, x=x, grid=grid, solver=hybrid, noise="white", end="path")
    for part, solver in ((grid.times[:8], "ddim"), (grid.times[7:11], "ddpm"), (grid.times[10:], "ddim")):
        x = sf.sample(MODEL, x=x, grid=sf.Grid(part), solver=solver, noise="white", end="path").x
    assert torch.equal(whole.x, x)
    assert whole.nfe == 12


def test_a_hybrid_hands_over_between_solvers_with_different_states():
    hybrid = sf.solvers.get("hybrid", deterministic="dpmpp-2m", noisy=4, after=3)
    run = sf.sample(MODEL, n=200, solver=hybrid, steps=30, dtype=torch.float64)
    assert (theory.classify(MODEL(run.x, 0.0).x0, MIXTURE).kind == theory.VALID).double().mean() > 0.97
    assert sf.solvers.registry.from_spec(hybrid.spec()) == hybrid
    with pytest.raises(sf.InputError, match="deterministic and a stochastic"):
        sf.solvers.get("hybrid", deterministic="ddpm")
    with pytest.raises(sf.InputError, match="noisy"):
        sf.solvers.get("hybrid", noisy=0)


def flat_model():
    return sf.Denoiser(lambda x, t: 0.1 * x, sf.VPCosine(), shape=(2, 3), dtype=torch.float32)


WRONG = {
    "another shape": lambda info: info.x[:, :1],
    "one sample": lambda info: info.x[:1],
    "what would broadcast": lambda info: info.x[0],
    "no dimensions": lambda info: info.x.sum(),
    "more precision": lambda info: info.x.double(),
    "less precision": lambda info: info.x.half(),
    "whole numbers": lambda info: info.x.long(),
    "another device": lambda info: info.x.to("meta"),
    "an array": lambda info: info.x.numpy(),
    "a number": lambda info: 1.0,
    "a truth value": lambda info: True,
    "a list": lambda info: [info.x],
    "the state of another solver": lambda info: (info.x, info.x),
    "information": lambda info: info,
}


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "rex-euler"])
def test_what_a_correction_returns_is_checked_and_the_correction_named(what, solver):
    def mine(info):
        return WRONG[what](info)

    with pytest.raises(sf.InputError, match="correction 'mine': returned"):
        sf.sample(flat_model(), n=4, solver=solver, steps=3, corrections=[mine])


def test_a_state_of_a_correction_with_another_sample_is_refused():
    class Mine:
        def __call__(self, info):
            return info.state._replace(x=info.x[:1])

    with pytest.raises(sf.InputError, match=r"correction 'Mine': returned torch.float32 of shape \(1, 2, 3\)"):
        sf.sample(flat_model(), n=4, solver="dpmpp-2m", steps=3, corrections=[Mine()])


@pytest.mark.parametrize(
    "net", [lambda x, t: x.to("meta"), lambda x, t: x.long(), lambda x, t: x + 0j, lambda x, t: x > 0]
)
def test_what_a_network_returns_is_checked(net):
    model = sf.Denoiser(net, sf.VPCosine(), shape=(2, 3), dtype=torch.float32)
    with pytest.raises(sf.InputError, match="prediction: the network returned"):
        sf.sample(model, n=4, steps=2)


@pytest.mark.parametrize(
    "words", [{"samples": range(3)}, {"shape": (2,)}, {"dtype": torch.float64}, {"device": "meta"}]
)
def test_noise_that_is_made_for_other_samples_is_refused(words):
    made = {"samples": range(4), "shape": (2, 3), "dtype": torch.float32, "device": "cpu", **words}
    noise = sf.noise.Brownian(0, made.pop("samples"), made.pop("shape"), **made)
    grid = sf.Grid((0.9, 0.5, 0.1))
    with pytest.raises(sf.InputError, match="noise: is made for"):
        sf.integrate(flat_model(), torch.zeros(4, 2, 3), grid, sf.solvers.get("ddpm"), noise=noise)
