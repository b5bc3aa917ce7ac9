"""Watch a checkpoint play, or record it.

python -m a3c_bench.play runs/default/CartPole-v1/paac/seed0                      # returns, as text
python -m a3c_bench.play runs/pong/Pong/paac/seed0 --video pong.mp4 --episodes 1  # or .gif
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from a3c_bench import build
from a3c_bench.envs import Step, VectorEnv
from a3c_bench.errors import ConfigError, UserError
from a3c_bench.evaluate import evaluation_config, evaluation_seed, load_network, parse_run, play, player
from a3c_bench.runtime.machine import resolve_device

VIDEO_SUFFIXES = (".mp4", ".gif")


def main(arguments: list[str] | None = None) -> int:
    """The command line; gives the exit status."""
    parser = argparse.ArgumentParser(prog="python -m a3c_bench.play", description=__doc__.split("\n")[0])
    parser.add_argument("--video", type=Path, help="file to write, .mp4 or .gif")
    parser.add_argument("--episodes", type=int, default=1)
    parser.add_argument("--fps", type=float, help="pictures per second (default: real time for Atari, 30 elsewhere)")
    try:
        chosen, config = parse_run(parser, arguments)
        if chosen.episodes < 1:
            raise ConfigError(f"--episodes {chosen.episodes} must be at least 1.")
        if chosen.video is not None and chosen.video.suffix not in VIDEO_SUFFIXES:
            raise ConfigError(f"--video {chosen.video} must end in {' or '.join(VIDEO_SUFFIXES)}.")
        config = evaluation_config(config)
        network = load_network(
            config, chosen.run / "checkpoint" / f"{chosen.checkpoint}.pt", resolve_device(config.device)
        )
        env_seed, action_seed = evaluation_seed(config, 2_000_000 + chosen.seed).spawn(2)
        envs = build.make_envs(config, 1, env_seed, render=chosen.video is not None)
        fps = chosen.fps or (60.0 / config.env.frame_skip if config.env.game else 30.0)
        writer = _Video(chosen.video, fps, envs) if chosen.video is not None else None
        n_left = chosen.episodes

        def after_step(step: Step) -> bool:
            nonlocal n_left
            if writer is not None:
                writer.add()
            for episode in step.episodes:
                n_left -= 1
                print(f"return {episode.episode_return:g} in {episode.episode_length} agent steps")
            return n_left > 0

        try:
            play(envs, player(config, network), config.evaluation.policy, action_seed, after_step)
        finally:
            if writer is not None:
                writer.close()
            envs.close()
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    if chosen.video is not None:
        print(f"video: {chosen.video}")
    return 0


class _Video:
    """One picture per agent step into an .mp4 or .gif file."""

    def __init__(self, path: Path, fps: float, envs: VectorEnv) -> None:
        import imageio

        options: dict[str, Any] = {"fps": fps, "macro_block_size": 2} if path.suffix == ".mp4" else {
            "duration": 1000.0 / fps, "loop": 0}  # fmt: skip
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = imageio.get_writer(path, **options)
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror or error}.") from error
        self._envs = envs

    def add(self) -> None:
        """Takes the picture that the environment shows now."""
        self._writer.append_data(self._envs.frames())

    def close(self) -> None:
        """Finishes the file."""
        self._writer.close()


if __name__ == "__main__":
    sys.exit(main())
