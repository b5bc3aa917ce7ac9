"""Names that settings may take, for those who want them without torch."""

ACTOR_CRITIC_REDUCTIONS = ("sum", "mean", "mean_over_envs")
Q_REDUCTIONS = ("sum", "mean")
