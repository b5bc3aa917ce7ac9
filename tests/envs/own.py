"""Gymnasium environments as a user may bring them: env.id=tests.envs.own:Corridor."""

import os
import signal
import time
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class Corridor(gymnasium.Env[Any, Any]):
    """Seven places, begun at 1 to 5 by its seed; at 0 it ends with reward -1, at 6 with 3."""

    metadata: Any = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    observation_space: Any = spaces.Box(0.0, 6.0, (2,), np.float64)
    action_space: Any = spaces.Discrete(2)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.place = 0

    def seen(self) -> Any:
        return np.array([self.place, 1.0])

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.place = int(self.np_random.integers(1, 6))
        return self.seen(), {}

    def step(self, action: Any) -> Any:
        assert action in (0, 1)
        self.place += 1 if action == 1 else -1
        over = self.place in (0, 6)
        return self.seen(), {0: -1.0, 6: 3.0}.get(self.place, 0.0), over, False, {}

    def render(self) -> Any:
        return None if self.render_mode is None else np.full((8, 10, 3), 40 * self.place, dtype=np.uint8)


class Shifted(Corridor):
    """The same by the number of its place, with states from -1 and actions from 1."""

    observation_space = spaces.Discrete(7, start=-1)
    action_space = spaces.Discrete(2, start=1)

    def seen(self) -> Any:
        return np.int64(self.place - 1)

    def step(self, action: Any) -> Any:
        assert action in (1, 2)
        return super().step(action - 1)


class Pictured(Corridor):
    """The same with a picture [H, W, C] among other things."""

    observation_space = spaces.Dict(
        {"picture": spaces.Box(0, 255, (6, 7, 3), np.uint8), "place": spaces.Discrete(7), "mission": spaces.Text(9)}
    )

    def seen(self) -> Any:
        picture = np.zeros((6, 7, 3), dtype=np.uint8)
        picture[0, self.place, 2] = 255
        return {"picture": picture, "place": self.place, "mission": "go right"}


class Limited(Corridor):
    """Ends itself after two steps, at the end of the corridor too."""

    def reset(self, **options: Any) -> Any:
        self.n_steps = 0
        return super().reset(**options)

    def step(self, action: Any) -> Any:
        self.n_steps += 1
        seen, reward, over, _, info = super().step(action)
        return seen, reward, over, self.n_steps == 2, info


def function() -> Any:
    return Corridor()


class Continuous(Corridor):
    action_space = spaces.Box(-1.0, 1.0, (1,))


class TwoActions(Corridor):
    action_space = spaces.MultiDiscrete([2, 2])


class SeveralActions(Corridor):
    action_space = spaces.Dict({"a": spaces.Discrete(2)})


class SeveralThings(Corridor):
    observation_space = spaces.Tuple((spaces.Discrete(2), spaces.Discrete(2)))


class OnlyText(Corridor):
    observation_space = spaces.Dict({"mission": spaces.Text(9)})


class FailsAtReset(Corridor):
    def reset(self, **options: Any) -> Any:
        raise OSError("there is no level 3.\nSee the log.")


class Old(Corridor):
    def reset(self, **options: Any) -> Any:
        return super().reset(**options)[0]


class OldStep(Corridor):
    def step(self, action: Any) -> Any:
        return super().step(action)[:4]


class NeedsMore(Corridor):
    def __init__(self, level: int) -> None:
        super().__init__()


class Midway(Corridor):
    """Goes wrong at its fifth step."""

    n_steps = 0

    def step(self, action: Any) -> Any:
        self.n_steps += 1
        if self.n_steps == 5:
            self.go_wrong()
        return super().step(action)

    def go_wrong(self) -> None:
        raise ZeroDivisionError("by hand")


class Dies(Midway):
    def go_wrong(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Hangs(Midway):
    def go_wrong(self) -> None:
        time.sleep(1000.0)


not_callable = {"a": 1}
