"""The journal of a run and the artifact folder."""
