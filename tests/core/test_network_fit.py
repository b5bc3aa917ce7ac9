"""Which observations fit which network, and what is said of those that do not."""

import pytest
import torch
from small_networks import frames, outputs

from a3c_bench.core.networks import ActorCritic, QNetwork


@pytest.mark.parametrize("kind", ["nips", "nature"])
@pytest.mark.parametrize("shape", [(4,), (84, 84), (2, 4, 84, 84)])
def test_image_networks_refuse_what_is_no_image(kind: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=f"'{kind}' needs images"):
        ActorCritic(shape, 2, kind)


# nips takes 20 -> 4 -> 1 and nature 36 -> 8 -> 3 -> 1: one pixel less must fail, whichever side lacks it.
@pytest.mark.parametrize(
    ("kind", "shape"), [("nips", (1, 19, 20)), ("nips", (1, 20, 19)), ("nature", (1, 35, 36)), ("nature", (1, 7, 7))]
)
def test_frames_too_small_are_refused(kind: str, shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=f"{shape[1]}x{shape[2]} are too small for '{kind}'"):
        ActorCritic(shape, 2, kind)


@pytest.mark.parametrize(("kind", "side"), [("nips", 20), ("nature", 36)])
def test_the_smallest_frames_are_accepted(kind: str, side: int) -> None:
    log_probs, values = outputs(ActorCritic((1, side, side), 2, kind), frames(2, (1, side, side)))
    assert log_probs.shape == (2, 2)
    assert values.shape == (2,)


@pytest.mark.parametrize("shape", [(3, 7, 7), (1, 5, 5), (4, 40, 12), (10, 5)], ids=str)
def test_the_small_network_reads_small_pictures_and_boards(shape: tuple[int, ...]) -> None:
    """conv 16 3x3/1, fc 128: the convolution loses a pixel on each side."""
    net = ActorCritic(shape, 2, "small")
    height, width = shape[-2:]
    channels = shape[0] if len(shape) == 3 else 1
    weights = [tuple(p.shape) for p in net.trunk.parameters() if p.dim() > 1]
    assert weights == [(16, channels, 3, 3), (128, 16 * (height - 2) * (width - 2))]
    log_probs, values = outputs(net, torch.rand(6, *shape))
    assert (log_probs.shape, values.shape) == ((6, 2), (6,))
    assert QNetwork(shape, 3, "small", dueling=True)(torch.rand(6, *shape)).shape == (6, 3)


@pytest.mark.parametrize(
    ("kind", "shape", "said"),
    [
        ("small", (3, 4, 9), "frames of 4x9 are too small for 'small': say network=mlp"),
        ("small", (3, 9, 41), "frames of 9x41 are too large for 'small': say network=mlp"),
        ("small", (4, 84, 84), "frames of 84x84 are too large for 'small': say network=nips or network=nature"),
        (
            "small",
            (8,),
            r"network 'small' needs images .* or boards .*, not observations of shape \(8,\): say network=mlp",
        ),
        ("nips", (3, 7, 7), "frames of 7x7 are too small for 'nips': say network=small or network=mlp"),
        ("nature", (3, 30, 30), "frames of 30x30 are too small for 'nature': say network=nips or network=small"),
        ("nips", (10, 5), r"needs images .*, not observations of shape \(10, 5\): say network=small or network=mlp"),
    ],
)
def test_what_does_not_fit_names_what_does(kind: str, shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(ValueError, match=f"{said}$"):
        ActorCritic(shape, 2, kind)
