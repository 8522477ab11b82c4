"""Workflows of several steps over the tables: ingest, refine, embed, and their records in state."""
