"""The only place that joins a host, its links and a real clock: whoever waits drives, and a thread where nobody does."""
