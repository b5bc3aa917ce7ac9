"""Watch a checkpoint play, or record it.

python -m a3c_bench.play runs/default/CartPole-v1/paac/seed0                      # returns, as text
python -m a3c_bench.play runs/pong/Pong/paac/seed0 --video pong.mp4 --episodes 1  # or .gif
"""

import argparse
import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from a3c_bench.errors import ConfigError, UserError
from a3c_bench.evaluate import parse_run
from a3c_bench.schema import Config
from a3c_bench.streams import exit_with

if TYPE_CHECKING:
    from a3c_bench.envs import Step, VectorEnv

VIDEO_SUFFIXES = (".mp4", ".gif")
FPS_RANGE = (0.01, 1000.0)  # ffmpeg is told hundredths


def main(arguments: list[str] | None = None) -> int:
    """The command line; gives the exit status."""
    parser = argparse.ArgumentParser(prog="python -m a3c_bench.play", description=__doc__.split("\n")[0])
    parser.add_argument("--video", type=Path, help="file to write, .mp4 or .gif")
    parser.add_argument("--episodes", type=int, default=1)
    parser.add_argument("--fps", type=float, help="pictures per second (default: real time for Atari, 30 elsewhere)")
    try:
        chosen, config = parse_run(parser, arguments)
        _check(chosen)
        fps = chosen.fps or (60.0 / config.env.frame_skip if config.env.game else 30.0)
        with _video(chosen.video, fps) if chosen.video is not None else nullcontext() as video:
            _play(chosen, config, video)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 130
    if chosen.video is not None:
        print(f"video: {chosen.video}")
    return 0


def _check(chosen: argparse.Namespace) -> None:
    """Raises ConfigError for a value that cannot be."""
    if chosen.episodes < 1:
        raise ConfigError(f"--episodes {chosen.episodes} must be at least 1.")
    if chosen.fps is not None and not FPS_RANGE[0] <= chosen.fps <= FPS_RANGE[1]:  # nan is in no range
        raise ConfigError(f"--fps {chosen.fps:g} must be between {FPS_RANGE[0]:g} and {FPS_RANGE[1]:g}.")
    if chosen.video is not None and chosen.video.suffix not in VIDEO_SUFFIXES:
        raise ConfigError(f"--video {chosen.video} must end in {' or '.join(VIDEO_SUFFIXES)}.")


def _play(chosen: argparse.Namespace, config: Config, video: "_Video | None") -> None:
    """Plays so many games, and prints how each ended."""
    from a3c_bench import build
    from a3c_bench.evaluation import evaluation_config, evaluation_seed, load_network, play, player
    from a3c_bench.runtime.machine import resolve_device

    config = evaluation_config(config)
    network = load_network(config, chosen.file, resolve_device(config.device))
    env_seed, action_seed = evaluation_seed(config, 2_000_000 + chosen.seed).spawn(2)
    envs = build.make_envs(config, 1, env_seed, render=video is not None)
    n_left: int = chosen.episodes

    def after_step(step: "Step") -> bool:
        nonlocal n_left
        if video is not None:
            video.add(envs)
        for episode in step.episodes:
            n_left -= 1
            print(f"return {episode.episode_return:g} in {episode.episode_length} agent steps")
        return n_left > 0

    try:
        play(envs, player(config, network), config.evaluation.policy, action_seed, after_step)
    finally:
        envs.close()


class _Video:
    """One picture per agent step into a file beside the one that was asked for."""

    def __init__(self, path: Path, fps: float) -> None:
        self._path = path
        self._aside = path.with_name(f"{path.stem}.new{path.suffix}")
        with self._said_in_one_sentence():
            self._writer = self._open(fps)

    def add(self, envs: "VectorEnv") -> None:
        """Takes the picture that the environment shows now."""
        picture = envs.frames()
        with self._said_in_one_sentence():
            self._writer.append_data(picture)

    def finish(self) -> None:
        """Closes the file and gives it its name."""
        with self._said_in_one_sentence():
            self._writer.close()
            os.replace(self._aside, self._path)

    def drop(self) -> None:
        """Removes what there is of the file."""
        with suppress(Exception):  # whatever led here is what the user has to know
            self._writer.close()
        self._aside.unlink(missing_ok=True)

    def _open(self, fps: float) -> Any:
        import imageio

        if self._path.is_dir():
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError:  # as something else
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None
        self._aside.write_bytes(b"")
        try:
            if self._path.suffix == ".gif":
                return imageio.get_writer(self._aside, duration=1000.0 / fps, loop=0)
            import imageio_ffmpeg

            imageio_ffmpeg.get_ffmpeg_exe()  # else it is looked for at the first picture
            return imageio.get_writer(self._aside, fps=fps, macro_block_size=2)
        except BaseException:
            self._aside.unlink(missing_ok=True)
            raise

    @contextmanager
    def _said_in_one_sentence(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError, ImportError) as error:  # RuntimeError: there is no ffmpeg
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            raise ConfigError(f"{self._path} cannot be written: {reason.rstrip('.')}.") from error


@contextmanager
def _video(path: Path, fps: float) -> Iterator[_Video]:
    """A video that is there when all went well, and not at all otherwise.

    Raises:
        ConfigError: it cannot be written; on entry, if that can be known before the first picture.
    """
    video = _Video(path, fps)
    try:
        yield video
        video.finish()
    except BaseException:
        video.drop()
        raise


if __name__ == "__main__":
    exit_with(main)
