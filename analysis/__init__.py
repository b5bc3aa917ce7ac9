"""From run directories to figures and tables; knows nothing of training but the files it leaves behind.

`load_runs("runs/demo")` gives every run below a directory: its configuration, its status, and its tables as pandas
DataFrames. `python -m analysis.curves` draws learning curves, `python -m analysis.lag` draws policy lag,
`python -m analysis.peers` times other implementations.
"""

from analysis.load import Run, load_runs

__all__ = ["Run", "load_runs"]
