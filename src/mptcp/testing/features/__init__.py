"""What each stack can do with which privilege: tried, not read off a list (docs/features.md is written from it)."""
