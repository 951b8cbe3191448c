"""The MPTCP of the Linux kernel: what it tells, what it can be told (ARCHITECTURE.md, "Seam: kernel")."""
