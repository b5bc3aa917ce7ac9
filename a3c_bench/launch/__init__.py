"""Many runs: on this machine, a few at a time, or as jobs of a SLURM cluster; both by submitit.

    points    what a sweep is to run, checked and written down before anything starts
    directories  that no two points have one
    job       what one run does inside its job: cores, signals, exit status
    local     the jobs on this machine
    cluster   the jobs on SLURM: submitting and waiting
    slurm     what SLURM says: squeue, sacct, scontrol
    state     where each run stands, from its directory, its job and SLURM together

The truth about a run is its directory: every job reads its configuration there, and a repeated command looks there
first. What SLURM knows decides only whether something is still under way.
"""
