"""PGD by hand in PyTorch on the network `cnn11`, timed: what a careful user writes without a toolkit.

    python pgd_torch.py GIVEN.npz FOUND.npz EPS STEPS STEP_SIZE REPEATS

GIVEN holds the weights in Keras' layout (arr_0 to arr_7), images x and labels y.
"""

import sys
import time

import numpy as np
import torch
import torch.nn.functional as F


def main() -> None:
    """Read, attack, time, write."""
    given, found, eps, steps, step_size, repeats = sys.argv[1:]
    eps, steps, step_size, repeats = float(eps), int(steps), float(step_size), int(repeats)
    with np.load(given) as arrays:
        weights = [torch.tensor(arrays[f"arr_{i}"]) for i in range(8)]
        x = torch.tensor(arrays["x"]).permute(0, 3, 1, 2).contiguous()
        y = torch.tensor(arrays["y"]).long()
    k1, b1, k2, b2, d1, c1, d2, c2 = weights
    k1, k2 = (k.permute(3, 2, 0, 1).contiguous() for k in (k1, k2))

    def logits(z):
        z = F.max_pool2d(F.relu(F.conv2d(z, k1, b1, padding=1)), 2)
        z = F.max_pool2d(F.relu(F.conv2d(z, k2, b2, padding=1)), 2)
        z = z.permute(0, 2, 3, 1).flatten(1)  # Keras flattens channels last
        return F.relu(z @ d1 + c1) @ d2 + c2

    def attack():
        generator = torch.Generator().manual_seed(0)
        z = x + (torch.rand(x.shape, generator=generator) * 2 - 1) * eps
        z = z.clamp(0, 1)
        for _ in range(steps):
            z.requires_grad_(True)
            (grad,) = torch.autograd.grad(F.cross_entropy(logits(z), y, reduction="sum"), z)
            z = z.detach() + step_size * grad.sign()
            z = torch.min(torch.max(z, x - eps), x + eps).clamp(0, 1)
        return z

    attack()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        x_adv = attack()
        times.append(time.perf_counter() - start)
    np.savez(found, seconds=np.median(times), x_adv=x_adv.permute(0, 2, 3, 1).numpy())


if __name__ == "__main__":
    main()
