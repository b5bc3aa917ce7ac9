"""The arrays in which a replay's rows lie."""

from typing import Any

import numpy as np

_COLUMNS: dict[str, type[np.generic]] = {
    "rows": np.int64,  # which row is in the slot
    "flags": np.uint8,
    "history": np.uint8,  # how many frames before it belong to its stack: k - 1, or fewer where a game began
    "actions": np.int64,
    "rewards": np.float32,
    "priorities": np.float64,
    "versions": np.int64,
    "frames_at_choice": np.int64,
    "seconds_at_choice": np.float64,
    "frames_at_insertion": np.int64,
}


def layout(
    n_slots: int, observation_shape: tuple[int, ...], observation_dtype: np.dtype[Any], stack: int
) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape and type of the arrays; a slot is env_id * capacity_per_env + row % capacity_per_env.

    Args:
        n_slots: the length of each.
        observation_shape: its channels (one, or three of a colour picture) come first, those of the oldest frame.
        observation_dtype: NumPy's.
        stack: the frames in an observation, of which one is kept.

    Raises:
        ValueError: an observation that is no such stack.
    """
    if stack < 1 or not observation_shape or observation_shape[0] % stack:
        raise ValueError(f"an observation of shape {observation_shape} is no stack of {stack} frames")
    frame_shape = observation_shape[0] // stack, *observation_shape[1:]
    frames = {"frames": ((n_slots, *frame_shape), np.dtype(observation_dtype))}
    return frames | {name: ((n_slots,), np.dtype(kind)) for name, kind in _COLUMNS.items()}
