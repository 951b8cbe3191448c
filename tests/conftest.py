"""What holds for all tests, however they were started: a run judges the code, not the dice, nor the machine around it.

``pytest --hypothesis-profile=random tests/fuzz`` draws other examples each time.
"""

import os
import signal

from hypothesis import HealthCheck, settings

settings.register_profile(
    "repeatable", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.register_profile("random", settings.get_profile("repeatable"), derandomize=False)
settings.load_profile("repeatable")

# A shell without job control has its background jobs ignore Ctrl-C, and so would every process that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

#: What makes rich and typer take a pipe for a terminal, or one of another size, and HTTP clients ask somebody else.
_SURROUNDINGS = (
    *(
        "COLUMNS",
        "LINES",
        "FORCE_COLOR",
        "NO_COLOR",
        "PY_COLORS",
        "TTY_COMPATIBLE",
        "TTY_INTERACTIVE",
        "GITHUB_ACTIONS",
    ),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"),
)
for _name in _SURROUNDINGS:
    os.environ.pop(_name, None)
