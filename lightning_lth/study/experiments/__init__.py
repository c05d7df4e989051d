"""Data, networks and training as in the papers, ready for a study."""
