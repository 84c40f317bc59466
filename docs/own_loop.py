"""Trains NP-DRAW in a loop of your own, with your data set, encoder and decoder: python docs/own_loop.py"""

from collections.abc import Callable

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.utils import save_image

from npdraw_dist import NPDraw, PartBank
from npdraw_dist.config.networks import PriorConfig
from npdraw_dist.config.spec import ModelSpec, PriorSpec
from npdraw_dist.parse.parser import Parser


class Digits(Dataset[Tensor]):  # put a data set of your own here: images (C, H, W), pixels in [0, 1]
    def __init__(self, numbers: range) -> None:
        small = torch.tensor(load_digits().images[numbers], dtype=torch.float32)[:, None] / 16
        self.images = (nn.functional.interpolate(small, size=24, mode="bicubic") > 0.5).float()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def train(net: nn.Module, loader: DataLoader[Tensor], epochs: int, loss: Callable[[Tensor], Tensor]) -> None:
    optimizer = torch.optim.AdamW(net.train().parameters(), 2e-3, betas=(0.9, 0.99))
    for _ in range(epochs):
        for images in loader:
            optimizer.zero_grad()
            loss(images).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 5.0)
            optimizer.step()
    net.eval()


def main(prior_epochs: int = 10, epochs: int = 10) -> NPDraw:
    torch.manual_seed(0)
    data, held_out = Digits(range(1500)), Digits(range(1500, 1797)).images
    loader = DataLoader(data, batch_size=32, shuffle=True)
    prior = PriorSpec.of(PriorConfig(depth=2, width=64))
    sizes = {"patch": 4, "stride": 4, "parts": 64, "steps": 36, "encoder_width": 64}  # 6 x 6 places
    spec = ModelSpec(image_shape=(1, 24, 24), binarize="threshold", order="aligned", prior=prior, **sizes)
    encoder = nn.Sequential(nn.Conv2d(1, 64, 4, 4), nn.GELU(), nn.Conv2d(64, 64, 3, padding=1), nn.GELU())
    decoder = nn.Sequential(nn.Conv2d(1, 32, 5, padding=2), nn.GELU(), nn.Conv2d(32, 1, 5, padding=2))
    model = NPDraw(spec, encoder=encoder, decoder=decoder)
    model.set_bank(PartBank.of(data.images, size=spec.parts, patch=spec.patch))
    parser = Parser(model.bank, model.grid, spec.steps, spec.order)
    print(f"bound on held-out digits, before: {model.log_weights(held_out, k=1).mean():.1f} nats")
    train(model.prior, loader, prior_epochs, lambda x: -model.prior.log_prob(parser(x).z).mean())
    train(model, loader, epochs, lambda x: model(x)[0])  # the negative bound
    print(f"bound on held-out digits, after: {model.log_weights(held_out, k=1).mean():.1f} nats")
    return model


if __name__ == "__main__":
    save_image(main().draw(64, seed=0).images, "own_loop.png")
