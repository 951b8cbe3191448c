"""What only a program inside the kernel can do: options of a single subflow (CAP_BPF and CAP_PERFMON)."""
