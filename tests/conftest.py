"""What holds for all tests that are drawn by Hypothesis: a run judges the code, not the dice, nor how busy the machine is.

``pytest --hypothesis-profile=random tests/fuzz`` draws others each time.
"""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "repeatable", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.register_profile("random", settings.get_profile("repeatable"), derandomize=False)
settings.load_profile("repeatable")
