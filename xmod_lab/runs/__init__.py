"""Run folders: their life, their record, the search for a base, sweeps."""
