"""NP-DRAW in plain PyTorch. B images, T places (6 x 6), K parts of P x P pixels, z = (whether, what)."""

import hashlib

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from torch import nn
from torch.distributions import Bernoulli, Categorical

P, T, K, WIDTH, BATCH, PRIOR_STEPS, VAE_STEPS = 5, 36, 100, 64, 32, 800, 1000
torch.manual_seed(0)

# 1. Images x, (B, 1, 28, 28). The 179 test images are those of `npdraw train`.
raw, train, test = load_digits(), [], []
for digit in range(10):
    seed = int.from_bytes(hashlib.blake2b(f"0/class-{digit}".encode(), digest_size=8).digest(), "big")
    order = np.random.default_rng(seed).permutation(np.flatnonzero(raw.target == digit))
    test.extend(order[: round(0.1 * len(order))])
    train.extend(order[round(0.2 * len(order)) :])  # the tenth between them is left for validation
large = F.interpolate(torch.tensor(raw.images[:, None]).float() / 16, size=24, mode="bicubic")
grey = F.pad(large.clamp(0, 1), (2, 2, 2, 2))
cut = nn.Sequential(nn.ZeroPad2d((0, 2, 0, 2)), nn.Unfold(P, stride=P))  # x_l for each place: (B, P * P, T)

# 2. Bank: k-means on patches with ink; part b_k is the real patch that is nearest to centre k.
patches = cut((grey[train] >= 0.5).float()).mT.flatten(0, 1)
patches = patches[patches.mean(1) > 0.01]
centres = torch.tensor(KMeans(K, n_init=1, random_state=0).fit(patches.numpy()).cluster_centers_)
bank = patches[torch.cdist(centres, patches).argmin(1)]


# 3. Parse: what_l = argmin_k |x_l - b_k|^2, and whether_l = 1 if that is less than |x_l|^2.
def parse(x):
    gain, what = (2 * cut(x).mT @ bank.T - bank.square().sum(1)).max(-1)  # |x_l|^2 - |x_l - b_k|^2
    return (gain > 0).float(), what


# 4. Prior: p(z) = prod_t p(whether_t | h_t) p(what_t | h_t). where_t = t; h_t sees the canvas so far.
def draw(logits):
    return Bernoulli(logits=logits[..., 0]).sample(), Categorical(logits=logits[..., 1:]).sample()


def log_prob(logits, whether, what):  # sum_t log p(whether_t) + whether_t log p(what_t)
    drawn, part = Bernoulli(logits=logits[..., 0]), Categorical(logits=logits[..., 1:])
    return (drawn.log_prob(whether) + whether * part.log_prob(what)).sum(-1)


class Prior(nn.Module):
    def __init__(self):
        super().__init__()
        self.canvas = nn.Parameter(0.02 * torch.randn(T, P * P, WIDTH))
        self.place = nn.Parameter(0.02 * torch.randn(T, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, 0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        self.out = nn.Linear(WIDTH, 1 + K)

    def forward(self, whether, what):  # a linear layer of the canvas is a running sum over the parts
        pasted = torch.einsum("btp,tpw->btw", whether[..., None] * bank[what], self.canvas)
        before, mask = pasted.cumsum(1) - pasted, nn.Transformer.generate_square_subsequent_mask(T)
        return self.out(self.blocks(before + self.place, mask, is_causal=True))


# 5. Posterior: q(z|x) = prod_l q(whether_l | x) q(what_l | x), from an encoder with logits (B, 1 + K, T).
def conv(inputs, outputs):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(8, outputs), nn.SiLU())


layers = conv(WIDTH, WIDTH), conv(WIDTH, WIDTH), nn.Conv2d(WIDTH, 1 + K, 1), nn.Flatten(2)
encoder = nn.Sequential(nn.ZeroPad2d((0, 2, 0, 2)), nn.Conv2d(1, WIDTH, P, P), nn.SiLU(), *layers)

# 6. Decoder: p(x|z) is a Bernoulli for each pixel, computed from the canvas.
layers = conv(4, 32), conv(32, 32), conv(32, 32), conv(32, 32), nn.Conv2d(32, 4, 1)
prior, decoder = Prior(), nn.Sequential(nn.PixelUnshuffle(2), *layers, nn.PixelShuffle(2))


def decode(whether, what):
    canvas = F.fold((whether[..., None] * bank[what]).mT, 30, P, stride=P)[..., :28, :28]
    return canvas, Bernoulli(logits=decoder(canvas) + 6 * canvas - 3)


# 7. Bound: log p(x) >= E[log w], w = p(x|z) p(z) / q(z|x), z ~ q(z|x).
def score(x, q, draws):  # log p(x|z) + log p(z), and log q(z|x), each (draws, B)
    q, x = q.repeat(draws, 1, 1), x.repeat(draws, 1, 1, 1)
    z = draw(q)
    log_p = decode(*z)[1].log_prob(x).sum((1, 2, 3)) + log_prob(prior(*z), *z)
    return log_p.view(draws, -1), log_prob(q, *z).view(draws, -1)


optimizer = torch.optim.AdamW(nn.ModuleList([prior, encoder, decoder]).parameters(), betas=(0.9, 0.99))
for step in range(PRIOR_STEPS + VAE_STEPS):
    images = grey[train][torch.randint(len(train), (BATCH,))]
    change = torch.eye(2, 3) + 0.06 * torch.randn(BATCH, 2, 3)  # turns, stretches and shifts the images
    sampled = F.affine_grid(change, images.shape, align_corners=False)
    x = (F.grid_sample(images, sampled, align_corners=False) >= 0.5).float()
    z, q = parse(x), encoder(x).mT
    loss = -log_prob(q, *z).mean()  # the parse teaches q, with a weight that falls to 0
    if step < PRIOR_STEPS:
        loss = loss - log_prob(prior(*z), *z).mean()
    else:
        log_p, log_q = score(x, q, 2)
        log_w = (log_p - log_q).detach()
        bound = (log_p + (log_w - log_w.flip(0)) * log_q).mean()  # a draw's baseline is the other draw
        loss = max(0, 1 - 3 * (step - PRIOR_STEPS) / VAE_STEPS) * loss - bound
    optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / (PRIOR_STEPS + VAE_STEPS))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

# 8. Samples z ~ p(z), x ~ p(x|z), and the test NLL: -log p(x) <= -E[log (1/k) sum_i w_i], k = 50.
whether, what = torch.zeros(40, T), torch.zeros(40, T, dtype=torch.long)
with torch.no_grad():
    for t in range(T):
        whether[:, t], what[:, t] = (new[:, t] for new in draw(prior(whether, what)))
    canvas, p_x = decode(whether, what)  # the picture of a sample is p_x.mean
    scores = [score(x, encoder(x).mT, 50) for x in (grey[test] >= 0.5).float().split(16)]
nll = torch.cat([np.log(50) - (log_p - log_q).logsumexp(0) for log_p, log_q in scores])
print(f"test NLL (k = 50): {nll.mean():.2f} +- {nll.std() / len(nll) ** 0.5:.2f} nats")
