"""``mptcp run PROGRAM``: the stream sockets of an unmodified program become MPTCP (seccomp user notification)."""
