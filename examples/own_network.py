"""A network of your own, from training to a saved inversion:  python examples/own_network.py"""

import torch
from torch import nn

import steadyflow as sf


class Net(nn.Module):
    """Predicts v on points in the plane."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))

    def forward(self, x, time):
        return self.layers(torch.cat([x, time[:, None]], dim=1))


torch.manual_seed(0)
data = sf.GaussianMixture.grid(2, spacing=2.0, std=0.3)
net, schedule = Net(), sf.VPCosine()
optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
for step in range(800):
    x0, eps, t = data.sample(256, seed=step).float(), torch.randn(256, 2), torch.rand(256) * 0.99
    alpha, sigma = schedule.alpha(t.double()).float()[:, None], schedule.sigma(t.double()).float()[:, None]
    loss = (net(alpha * x0 + sigma * eps, t) - (alpha * eps - sigma * x0)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

model = sf.Denoiser(net.requires_grad_(False), schedule, prediction="v_prediction", shape=(2,))
points = data.sample(100, seed=10_000).float()
inversion = sf.invert(model, points, solver="auto", nfe=24)
inversion.save("points.safetensors")
back = sf.Inversion.load("points.safetensors", model).decode()
print(inversion.reason)
print(f"round trip: {(back.x - points).abs().max():.1e}")
