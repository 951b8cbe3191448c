"""The service that steers MPTCP connections for processes without privilege, and its client (docs/broker.md)."""
