"""Named sweeps, one YAML each (python -m a3c_bench.run +sweeps=NAME), and two small tools.

python -m sweeps.plan atari57 --launcher slurm_gpu     what a sweep will cost, before anything is submitted
python -m sweeps.status runs/lag_vs_agents             where its runs stand
"""
